<?php
// PHP's streams (file_get_contents, fopen, copy, SoapClient …) read no proxy variable. This makes the proxy that
// http_proxy names the default of every stream that brings no context of its own. An ini file loads it before each
// script (auto_prepend_file); a file that another ini file would have loaded first still is.
$overcoat_next = (static function (): ?string {
    $url = getenv('http_proxy');
    if (is_string($url) && preg_match('~^http://([^/@]+)/?$~', $url, $found)) {
        stream_context_set_default(['http' => ['proxy' => "tcp://{$found[1]}", 'request_fulluri' => true]]);
    }
    $next = null;
    foreach (array_filter([php_ini_loaded_file(), ...explode(',', (string) php_ini_scanned_files())]) as $ini) {
        $read = parse_ini_file(trim($ini), false, INI_SCANNER_RAW) ?: [];
        $file = trim($read['auto_prepend_file'] ?? '', '"\' ');
        if ($file !== '' && $file !== 'none' && $file !== __FILE__) {
            $next = $file;
        }
    }
    return $next;
})();
if ($overcoat_next !== null) {
    require $overcoat_next;
}
unset($overcoat_next);
