<?php
// PHP's streams (file_get_contents, fopen, copy, SoapClient …) read no proxy variable. This makes the proxy that
// http_proxy names the default of every stream that brings no context of its own. An ini file loads it before each
// script (auto_prepend_file); a file that was to be loaded first anyway follows.
(static function (): void {
    $url = getenv('http_proxy');
    if (is_string($url) && preg_match('~^http://([^/@]+)/?$~', $url, $found)) {
        $options = ['proxy' => "tcp://{$found[1]}", 'request_fulluri' => true];
        stream_context_set_default(['http' => $options]);
    }
})();
foreach (array_filter([php_ini_loaded_file(), ...explode(",\n", (string) php_ini_scanned_files())]) as $overcoat_ini) {
    $overcoat_first = (parse_ini_file(trim($overcoat_ini), false, INI_SCANNER_RAW) ?: [])['auto_prepend_file'] ?? '';
    $overcoat_first = trim($overcoat_first, '"\' ');
    if ($overcoat_first !== '' && $overcoat_first !== 'none' && $overcoat_first !== __FILE__) {
        $overcoat_next = $overcoat_first;
    }
}
unset($overcoat_ini, $overcoat_first);
if (isset($overcoat_next)) {
    require $overcoat_next;
}
