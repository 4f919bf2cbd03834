package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// scene is a client, whom it calls, and who else takes part.
type scene struct {
	client  *process
	others  []int      // processes
	tracked []*os.File // namespaces: they live as long as these files, and their connection tracking is looked at
}

func newScene(ns *os.File, call string, others []int, tracked ...*os.File) (*scene, error) {
	client, err := start(ns, 0, 0, "call", call)
	return &scene{client, others, tracked}, err
}

// block makes connections, and tells what the client saw and what that cost it and the
// others.
func (s *scene) block(connections int) (map[string]float64, error) {
	before, err := cpu(s.others)
	if err != nil {
		return nil, err
	}
	short, err := s.client.do("short", connections)
	if err != nil {
		return nil, err
	}
	after, err := cpu(s.others)
	if err != nil {
		return nil, err
	}
	ping, err := s.client.do("ping", connections)
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		figureConnect: short.Connect, figureAnswer: short.Round, figureRate: float64(connections) / short.Seconds,
		figureCPU: (short.CPU + after - before) * 1e6 / float64(connections), figurePing: ping.Round,
	}, nil
}

func (s *scene) entries() (map[string]float64, error) {
	all := 0.0
	for _, ns := range s.tracked {
		n, err := conntrackEntries(ns)
		if err != nil {
			return nil, err
		}
		all += n
	}
	return map[string]float64{figureEntries: all}, nil
}

// play does what it is told, line by line: "block N" or "entries".
func (s *scene) play() error {
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		what, rest, _ := strings.Cut(lines.Text(), " ")
		answer, err := s.entries, error(nil)
		if what == "block" {
			var n int
			n, err = strconv.Atoi(rest)
			answer = func() (map[string]float64, error) { return s.block(n) }
		}
		if err != nil {
			return err
		}
		figures, err := answer()
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(figures); err != nil {
			return err
		}
	}
	return lines.Err()
}

// conntrackEntries counts what connection tracking holds of a namespace.
func conntrackEntries(ns *os.File) (n float64, err error) {
	err = in(ns, func() error {
		text, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
		if errors.Is(err, os.ErrNotExist) {
			return nil // there is no connection tracking
		}
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n") // the first column, in each line the same, is the count
		if len(lines) < 2 || len(strings.Fields(lines[1])) == 0 {
			return fmt.Errorf("nf_conntrack: %q", text)
		}
		entries, err := strconv.ParseUint(strings.Fields(lines[1])[0], 16, 64)
		n = float64(entries)
		return err
	})
	return n, err
}
