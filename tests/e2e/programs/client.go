// One request of Go's net/http over HTTP/2, through a proxy. The job is JSON on standard input, the answer on standard
// output.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"strings"
)

type job struct {
	Method, URL, Proxy, CA string
	Headers                map[string]string
	Body                   *string
}

func must(err error) {
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
}

func flat(fields http.Header) map[string]string {
	found := map[string]string{}
	for name, values := range fields {
		found[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	return found
}

func main() {
	var asked job
	must(json.NewDecoder(os.Stdin).Decode(&asked))
	pem, err := os.ReadFile(asked.CA)
	must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	proxy, err := url.Parse(asked.Proxy)
	must(err)
	client := http.Client{Transport: &http.Transport{
		Proxy:             http.ProxyURL(proxy),
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		ForceAttemptHTTP2: true,
	}}
	var body io.Reader
	if asked.Body != nil {
		data, err := base64.StdEncoding.DecodeString(*asked.Body)
		must(err)
		body = io.MultiReader(bytes.NewReader(data)) // whose length nobody knows
	}
	request, err := http.NewRequest(asked.Method, asked.URL, body)
	must(err)
	for name, value := range asked.Headers {
		request.Header.Set(name, value)
	}
	interim := []int{}
	request = request.WithContext(httptrace.WithClientTrace(request.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			interim = append(interim, code)
			return nil
		},
	}))
	response, err := client.Do(request)
	must(err)
	content, err := io.ReadAll(response.Body)
	must(err)
	must(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"status":   response.StatusCode,
		"version":  response.Proto,
		"headers":  flat(response.Header),
		"trailers": flat(response.Trailer),
		"interim":  interim,
		"body":     base64.StdEncoding.EncodeToString(content),
	}))
}
