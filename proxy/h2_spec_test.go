package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	spechttp2 "github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// notThroughAProxy are the cases of h2spec that can't be seen through a proxy,
// and why.
var notThroughAProxy = map[string]string{
	"http2/3.5/2": "what does not begin as HTTP/2 is not taken for it, but passes as opaque bytes; the application answers it",
}

// TestH2Spec runs h2spec, strict cases included, through two proxies.
func TestH2Spec(t *testing.T) {
	if testing.Short() {
		t.Skip("h2spec waits for what must not come")
	}
	app := newH2App(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(w, "hello, this is an answer")
	})
	host, p, err := net.SplitHostPort(newTestPair(t, app, false).addr)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	conf := &config.Config{Host: host, Port: port, Path: "/", Timeout: 10 * time.Second, MaxHeaderLen: 4000, Strict: true}
	passed := 0
	for _, group := range []*spec.TestGroup{generic.Spec(), spechttp2.Spec(), hpack.Spec()} {
		group.Test(conf)
		passed += checkSpec(t, group)
	}
	t.Logf("%d cases passed", passed)
	if passed < 140 {
		t.Error("some cases were not run")
	}
}

// checkSpec reports what failed in a group, and counts what passed.
func checkSpec(t *testing.T, g *spec.TestGroup) (passed int) {
	for _, inner := range g.Groups {
		passed += checkSpec(t, inner)
	}
	for i, c := range g.Tests {
		name := fmt.Sprintf("%s/%d", g.ID(), i+1)
		reason := notThroughAProxy[name]
		switch {
		case c.Result == nil || c.Result.Skipped:
			t.Errorf("%s was not run: %s", name, c.Desc)
		case !c.Result.Failed:
			passed++
		case reason == "":
			t.Errorf("%s: %s: %s: %v", name, c.Desc, c.Requirement, c.Result.Error)
		}
	}
	return passed
}
