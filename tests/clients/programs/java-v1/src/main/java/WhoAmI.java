import com.amazonaws.auth.AWSCredentialsProvider;
import com.amazonaws.auth.AWSSessionCredentials;
import com.amazonaws.auth.DefaultAWSCredentialsProviderChain;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;

/**
 * Says what keys it has for each line of its input: "new" by the default chain, "again" by the same one, told to renew.
 * It does not ask STS itself: this SDK signs its User-Agent, and moto can't check that.
 */
public class WhoAmI {
    public static void main(String[] args) throws IOException {
        AWSCredentialsProvider chain = DefaultAWSCredentialsProviderChain.getInstance();
        System.out.println("ready");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                if (line.equals("again")) {
                    chain.refresh();
                }
                AWSSessionCredentials keys = (AWSSessionCredentials) chain.getCredentials();
                System.out.println(
                    "keys " + keys.getAWSAccessKeyId() + " " + keys.getAWSSecretKey() + " " + keys.getSessionToken());
            } catch (RuntimeException error) {
                System.out.println("no " + error.getMessage().replaceAll("\\s+", " "));
            }
        }
    }
}
