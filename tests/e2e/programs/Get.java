import java.net.HttpURLConnection;
import java.net.URI;

/** One GET with Java's HttpURLConnection, as the environment says; the status on standard output. */
public class Get {
    public static void main(String[] arguments) throws Exception {
        System.out.println(((HttpURLConnection) URI.create(arguments[0]).toURL().openConnection()).getResponseCode());
    }
}
