package peer

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// Load is what the load program counted.
type Load struct {
	Requests int
	Failures int
	Errors   map[string]int // by text
	Answers  map[string]int // by first line of the body
}

// load asks for a URL over and over until a file appears, and prints a Load as
// JSON: load [-c CLIENTS] [-n COUNT] [--progress FILE] [--until FILE] [--close] URL.
// After each 100 answers it rewrites the progress file with their count.
func load(args []string) int {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	clients := flags.Int("c", 4, "clients at once")
	count := flags.Int("n", 1<<40, "requests in all")
	until := flags.String("until", "", "end when this file appears")
	progress := flags.String("progress", "", "file to keep the count of answers in")
	fresh := flags.Bool("close", false, "a connection for each request")
	if flags.Parse(args) != nil || flags.NArg() != 1 {
		return 2
	}
	client := &http.Client{
		Timeout:   patience,
		Transport: &http.Transport{MaxIdleConnsPerHost: *clients, DisableKeepAlives: *fresh},
	}
	var (
		mu     sync.Mutex
		result = Load{Errors: map[string]int{}, Answers: map[string]int{}}
		asked  int
		all    sync.WaitGroup
	)
	next := func() bool {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return asked <= *count && !exists(*until)
	}
	for range *clients {
		all.Go(func() {
			for next() {
				answer, err := ask(client, flags.Arg(0))
				mu.Lock()
				result.count(answer, err)
				if *progress != "" && result.Requests%100 == 0 {
					writeWhole(*progress, fmt.Sprint(result.Requests))
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	json.NewEncoder(os.Stdout).Encode(result)
	return 0
}

func (l *Load) count(answer string, err error) {
	l.Requests++
	if err != nil {
		l.Failures++
		l.Errors[err.Error()]++
		return
	}
	l.Answers[answer]++
}

func ask(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	line, _, _ := strings.Cut(string(body), "\n")
	return line, nil
}

func exists(file string) bool {
	if file == "" {
		return false
	}
	_, err := os.Stat(file)
	return err == nil
}

// writeWhole replaces a file so that a reader never sees half of it.
func writeWhole(file, text string) {
	next := fmt.Sprintf("%s.%d", file, time.Now().UnixNano())
	if os.WriteFile(next, []byte(text), 0o666) == nil {
		os.Rename(next, file)
	}
}
