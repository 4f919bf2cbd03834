package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestTokens(t *testing.T) {
	parent, fd := socketpair(t)
	get, err := tokens(fd)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		lines := bufio.NewScanner(parent)
		for i := 0; lines.Scan(); i++ {
			if lines.Text() != "token" {
				t.Errorf("asked %q", lines.Text())
			}
			for _, piece := range []string{"tok", fmt.Sprintf("en-%d", i), "\n"} {
				_, _ = io.WriteString(parent, piece)
			}
		}
	}()
	var group sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for range 10 {
		group.Go(func() {
			token, err := get(context.Background())
			if err != nil || !strings.HasPrefix(token, "token-") {
				t.Errorf("%q, %v", token, err)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[token] = true
		})
	}
	group.Wait()
	if len(seen) != 10 {
		t.Errorf("%d different tokens for 10 callers", len(seen))
	}
	parent.Close()
	<-answered
}

// A parent that is gone is named, and does not make the proxy hang or die.
func TestTokensWithoutAParent(t *testing.T) {
	for name, end := range map[string]func(*os.File){
		"gone before":            func(p *os.File) { p.Close() },
		"gone instead of answer": func(p *os.File) { _, _ = p.Read(make([]byte, 6)); p.Close() },
		"gone within answer":     func(p *os.File) { _, _ = p.Read(make([]byte, 6)); _, _ = io.WriteString(p, "half"); p.Close() },
	} {
		parent, fd := socketpair(t)
		get, err := tokens(fd)
		if err != nil {
			t.Fatal(err)
		}
		go end(parent)
		for range 3 {
			if token, err := get(context.Background()); token != "" || !errors.Is(err, errNoParent) {
				t.Errorf("%s: %q, %v; want %v", name, token, err, errNoParent)
			}
		}
	}
}

func TestBadAnswers(t *testing.T) {
	for _, answer := range []string{"\n", "  \n", strings.Repeat("x", 2*maxToken) + "\n"} {
		parent, fd := socketpair(t)
		get, err := tokens(fd)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(parent, answer) }()
		if token, err := get(context.Background()); token != "" || err == nil {
			t.Errorf("answer of %d bytes: %.20q, %v", len(answer), token, err)
		}
	}
}

// However often somebody gives up, there is one question under way, and its
// answer goes to who asks next.
func TestTokensGivenUp(t *testing.T) {
	parent, fd := socketpair(t)
	get, err := tokens(fd)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	go func() { defer close(asked); _, _ = io.ReadFull(parent, make([]byte, len("token\n"))) }()
	for range 5 {
		ctx, cancel := context.WithCancel(context.Background())
		go func() { <-asked; cancel() }()
		if token, err := get(ctx); token != "" || !errors.Is(err, context.Canceled) {
			t.Errorf("%q, %v", token, err)
		}
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := get(over); !errors.Is(err, context.Canceled) {
		t.Errorf("given up before: %v", err)
	}
	_, _ = io.WriteString(parent, "late\n")
	if token, err := get(context.Background()); token != "late" || err != nil {
		t.Errorf("%q, %v; want the answer", token, err)
	}
	go func() {
		_, _ = io.ReadFull(parent, make([]byte, len("token\n")))
		_, _ = io.WriteString(parent, "fresh\n")
		parent.Close()
	}()
	if token, err := get(context.Background()); token != "fresh" || err != nil {
		t.Errorf("%q, %v; want the fresh one", token, err)
	}
}

func TestReadiness(t *testing.T) {
	parent, fd := socketpair(t)
	ready, err := readiness(fd)
	if err != nil {
		t.Fatal(err)
	}
	_ = parent.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := parent.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("told before it was ready: %v", err)
	}
	_ = parent.SetReadDeadline(time.Time{})
	ready()
	if got, err := io.ReadAll(parent); string(got) != "ready\n" || err != nil {
		t.Errorf("told %q, %v", got, err)
	}
	ready() // again: harmless
	gone, fd := socketpair(t)
	if ready, err = readiness(fd); err != nil {
		t.Fatal(err)
	}
	gone.Close()
	ready()
}
