import java.net.HttpURLConnection;
import java.net.URI;

/** Java's HttpURLConnection. */
public class Url {
    public static void main(String[] arguments) throws Exception {
        ask("upgraded", "{\"card\": \"4111111111111111\", \"name\": \"x\"}");
        for (String name : new String[] {"inspected", "tunnelled", "refused"}) {
            ask(name, null);
        }
    }

    static void ask(String name, String body) throws Exception {
        var connection = (HttpURLConnection) URI.create(System.getenv(name.toUpperCase())).toURL().openConnection();
        if (body != null) {
            connection.setDoOutput(true);
            connection.setRequestProperty("Content-Type", "application/json");
            connection.getOutputStream().write(body.getBytes());
        }
        System.out.println(name + " " + connection.getResponseCode());
    }
}
