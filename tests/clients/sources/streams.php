<?php
// PHP's streams: file_get_contents and all that reads a URL as a file. No context is named.
function ask(string $name, ?string $body = null): void {
    if ($body !== null) {
        stream_context_set_default(['http' => [
            'method' => 'POST', 'header' => 'Content-Type: application/json', 'content' => $body, 'ignore_errors' => true,
        ]]);
    } else {
        stream_context_set_default(['http' => ['method' => 'GET', 'header' => '', 'content' => '', 'ignore_errors' => true]]);
    }
    $answer = @file_get_contents(getenv(strtoupper($name)));
    echo $name, ' ', $answer === false ? error_get_last()['message'] : explode(' ', $http_response_header[0])[1], "\n";
}

ask($argv[1], $argv[1] === 'upgraded' ? '{"card": "4111111111111111", "name": "x"}' : null);
