import com.amazonaws.auth.AWSCredentialsProvider;
import com.amazonaws.auth.DefaultAWSCredentialsProviderChain;
import com.amazonaws.client.builder.AwsClientBuilder.EndpointConfiguration;
import com.amazonaws.services.securitytoken.AWSSecurityTokenService;
import com.amazonaws.services.securitytoken.AWSSecurityTokenServiceClientBuilder;
import com.amazonaws.services.securitytoken.model.GetCallerIdentityRequest;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;

/** Says who it is for each line of its input: "new" by the default chain, "again" by the same one, told to renew. */
public class WhoAmI {
    public static void main(String[] args) throws IOException {
        EndpointConfiguration aws =
            new EndpointConfiguration(System.getenv("AWS_ENDPOINT_URL"), System.getenv("AWS_REGION"));
        AWSCredentialsProvider chain = DefaultAWSCredentialsProviderChain.getInstance();
        AWSSecurityTokenService client =
            AWSSecurityTokenServiceClientBuilder.standard().withEndpointConfiguration(aws).build();
        System.out.println("ready");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                if (line.equals("again")) {
                    chain.refresh();
                }
                System.out.println("ok " + client.getCallerIdentity(new GetCallerIdentityRequest()).getArn());
            } catch (RuntimeException error) {
                System.out.println("no " + error.getMessage().replaceAll("\\s+", " "));
            }
        }
    }
}
