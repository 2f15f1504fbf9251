<?php
// PHP's curl extension.
function ask(string $name, ?string $body = null): void {
    $handle = curl_init(getenv(strtoupper($name)));
    curl_setopt($handle, CURLOPT_RETURNTRANSFER, true);
    if ($body !== null) {
        curl_setopt_array($handle, [CURLOPT_POSTFIELDS => $body, CURLOPT_HTTPHEADER => ['Content-Type: application/json']]);
    }
    curl_exec($handle);
    echo $name, ' ', curl_getinfo($handle, CURLINFO_RESPONSE_CODE), curl_error($handle), "\n";
}

ask('upgraded', '{"card": "4111111111111111", "name": "x"}');
array_map('ask', ['inspected', 'tunnelled', 'refused']);
