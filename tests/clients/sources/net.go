// Go's net/http.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
)

func say(name string, response *http.Response, err error) {
	if err != nil {
		fmt.Println(name, err)
		return
	}
	response.Body.Close()
	fmt.Println(name, response.StatusCode)
}

func main() {
	body := strings.NewReader(`{"card": "4111111111111111", "name": "x"}`)
	response, err := http.Post(os.Getenv("UPGRADED"), "application/json", body)
	say("upgraded", response, err)
	for _, name := range []string{"inspected", "tunnelled", "refused"} {
		response, err := http.Get(os.Getenv(strings.ToUpper(name)))
		say(name, response, err)
	}
}
