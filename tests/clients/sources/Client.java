import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Java's HttpClient. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        ask("upgraded", "{\"card\": \"4111111111111111\", \"name\": \"x\"}");
        for (String name : new String[] {"inspected", "tunnelled", "refused"}) {
            ask(name, null);
        }
    }

    static final HttpClient CLIENT = HttpClient.newHttpClient();

    static void ask(String name, String body) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(System.getenv(name.toUpperCase())));
        if (body != null) {
            request.header("Content-Type", "application/json").POST(HttpRequest.BodyPublishers.ofString(body));
        }
        System.out.println(name + " " + CLIENT.send(request.build(), HttpResponse.BodyHandlers.ofString()).statusCode());
    }
}
