import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.lang.reflect.Field;
import software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider;
import software.amazon.awssdk.services.sts.StsClient;

/** Says who it is for each line of its input: "new" by a new default chain, "again" by the same one, made to renew. */
public class WhoAmI {
    /** From the default chain to the keys that the provider for instances has at hand. */
    private static final String[] KEYS =
        {"providerChain", "delegate", "value", "lastUsedProvider", "credentialsCache", "cachedValue"};

    public static void main(String[] args) throws IOException, ReflectiveOperationException {
        DefaultCredentialsProvider chain = null;
        StsClient client = null;
        System.out.println("ready");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                if (line.equals("new")) {
                    chain = DefaultCredentialsProvider.builder().build();
                    client = StsClient.builder().credentialsProvider(chain).build();
                } else {
                    forget(chain);
                }
                System.out.println("ok " + client.getCallerIdentity().arn());
            } catch (RuntimeException error) {
                System.out.println("no " + error.getMessage().replaceAll("\\s+", " "));
            }
        }
    }

    /** What time does by itself; there is no public way. */
    private static void forget(DefaultCredentialsProvider chain) throws ReflectiveOperationException {
        Object owner = chain;
        for (int step = 0; step < KEYS.length - 1; step++) {
            owner = field(owner, KEYS[step]).get(owner);
        }
        field(owner, KEYS[KEYS.length - 1]).set(owner, null);
    }

    private static Field field(Object owner, String name) throws NoSuchFieldException {
        Field field = owner.getClass().getDeclaredField(name);
        field.setAccessible(true);
        return field;
    }
}
