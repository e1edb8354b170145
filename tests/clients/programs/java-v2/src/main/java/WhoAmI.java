import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import software.amazon.awssdk.services.sts.StsClient;

/** Says who it is for each line of its input, each time by a new default chain. */
public class WhoAmI {
    public static void main(String[] args) throws IOException {
        System.out.println("ready");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        while (lines.readLine() != null) {
            try (StsClient client = StsClient.create()) {
                System.out.println("ok " + client.getCallerIdentity().arn());
            } catch (RuntimeException error) {
                System.out.println("no " + error.getMessage().replaceAll("\\s+", " "));
            }
        }
    }
}
