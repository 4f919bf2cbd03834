package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

const (
	awaitFor   = 2 * time.Minute
	awaitPause = 100 * time.Millisecond
)

// awaitReady returns once the proxy of this pod serves. It is the hook that
// keeps a pod's other containers from starting earlier, on clusters that know no
// restartable init containers.
func awaitReady(stderr io.Writer) int {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	url := fmt.Sprintf("http://127.0.0.1:%d/ready", mesh.AdminPort)
	var last error
	for end := time.Now().Add(awaitFor); time.Now().Before(end); time.Sleep(awaitPause) {
		answer, err := client.Get(url)
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return 0
			}
			err = fmt.Errorf("%s", answer.Status)
		}
		last = err
	}
	fmt.Fprintf(stderr, "tulle-proxy: not ready after %s: %v\n", awaitFor, last)
	return 1
}
