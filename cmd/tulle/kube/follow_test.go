package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tulle-mesh/tulle/dashboard"
)

func reporting(pod, address string, follows uint32) dashboard.Proxy {
	return dashboard.Proxy{
		Workload: pod, Identity: "spiffe://cluster.local/ns/shop/sa/default", Address: address,
		State: "connected", LastReport: "2026-01-01T00:00:00Z", Destinations: follows,
	}
}

// A proxy follows the control plane if it reports, and knows what is so now of
// all that it follows.
func TestLost(t *testing.T) {
	key := func(address string) string { return "spiffe://cluster.local/ns/shop/sa/default@" + address }
	silent := reporting("c", "10.0.0.3", 0)
	silent.LastReport = ""
	gone := reporting("d", "10.0.0.4", 0)
	gone.State = "lost"
	elsewhere := reporting("a", "10.0.0.9", 0)
	elsewhere.Identity = "spiffe://cluster.local/ns/other/sa/default"
	for _, c := range []struct {
		name    string
		pods    []string
		proxies []dashboard.Proxy
		told    map[string]int
		want    []string
	}{
		{"no pods", nil, nil, map[string]int{}, nil},
		{"nobody reports", []string{"shop/a"}, nil, map[string]int{}, []string{"shop/a"}},
		{"follows nothing", []string{"shop/a"}, []dashboard.Proxy{reporting("a", "10.0.0.1", 0)}, map[string]int{}, nil},
		{"told all", []string{"shop/a"}, []dashboard.Proxy{reporting("a", "10.0.0.1", 2)}, map[string]int{key("10.0.0.1"): 2}, nil},
		{"told a part", []string{"shop/a"}, []dashboard.Proxy{reporting("a", "10.0.0.1", 2)}, map[string]int{key("10.0.0.1"): 1}, []string{"shop/a"}},
		{"another is told", []string{"shop/a"}, []dashboard.Proxy{reporting("a", "10.0.0.1", 2)}, map[string]int{key("10.0.0.2"): 2}, []string{"shop/a"}},
		{"reports, but watches nothing yet", []string{"shop/a"}, []dashboard.Proxy{reporting("a", "10.0.0.1", 1)}, map[string]int{}, []string{"shop/a"}},
		{"connected, not heard of yet", []string{"shop/c"}, []dashboard.Proxy{silent}, map[string]int{}, []string{"shop/c"}},
		{"gone", []string{"shop/d"}, []dashboard.Proxy{gone}, map[string]int{}, []string{"shop/d"}},
		{"the same name elsewhere", []string{"shop/a"}, []dashboard.Proxy{elsewhere}, map[string]int{}, []string{"shop/a"}},
		{"an older control plane", []string{"shop/a", "shop/b"}, []dashboard.Proxy{reporting("a", "10.0.0.1", 2)}, nil, []string{"shop/b"}},
		{
			"two behind one address, one of them not told", []string{"shop/a", "shop/b"},
			[]dashboard.Proxy{reporting("a", "10.0.0.1", 1), reporting("b", "10.0.0.1", 1)},
			map[string]int{key("10.0.0.1"): 1}, []string{"shop/a", "shop/b"},
		},
	} {
		if got := lost(c.pods, c.proxies, c.told); !slices.Equal(got, c.want) {
			t.Errorf("%s: lost %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAwaitFollowers(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "pods/portforward"}, "x", errors.New("no"))
	explained := (&cluster{}).explain(forbidden)
	for _, c := range []struct {
		name   string
		look   func(second int) (following, error)
		before []string
		want   []string
		wrong  bool
		after  time.Duration
		says   string
	}{
		{name: "at once", look: func(int) (following, error) { return following{pods: []string{"a", "b"}}, nil }},
		{
			name: "one after the other", after: 2 * time.Second,
			look: func(n int) (following, error) {
				return following{[]string{"a", "b"}, []string{"a", "b"}[n:]}, nil
			},
			says: "  proxies: 1 of 2 follow the control plane\n  proxies: 2 of 2 follow the control plane\n",
		},
		{
			name: "each at another time, and then one of them not", after: 2 * time.Second,
			look: func(n int) (following, error) {
				return following{[]string{"a", "b", "c"}, [][]string{{"b", "c"}, {"a", "c"}, {"a", "b"}}[n]}, nil
			},
			says: "  proxies: 1 of 3 follow the control plane\n  proxies: 2 of 3 follow the control plane\n  proxies: 3 of 3 follow the control plane\n",
		},
		{
			name: "the control plane does not answer at first", after: 5 * time.Second,
			look: func(n int) (following, error) {
				if n < 5 {
					return following{}, errors.New("not ready")
				}
				return following{pods: []string{"a"}}, nil
			},
		},
		{
			name: "never", after: time.Minute, want: []string{"b"}, before: []string{"a"},
			look: func(int) (following, error) { return following{[]string{"a", "b"}, []string{"b"}}, nil },
			says: "  proxies: 1 of 2 follow the control plane\n",
		},
		{
			name: "as before", after: 30 * time.Second, want: []string{"b"}, before: []string{"a", "b"},
			look: func(int) (following, error) { return following{[]string{"a", "b"}, []string{"b"}}, nil },
			says: "  proxies: 1 of 2 follow the control plane\n",
		},
		{name: "no answer at all", after: time.Minute, wrong: true, look: func(int) (following, error) { return following{}, errors.New("not ready") }},
		{name: "no right to ask", wrong: true, look: func(int) (following, error) { return following{}, fmt.Errorf("reach pod: %w", explained) }},
	} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			began := time.Now()
			look := func(context.Context) (following, error) { return c.look(int(time.Since(began) / time.Second)) }
			got, err := awaitFollowers(t.Context(), &out, look, time.Minute, c.before)
			if !slices.Equal(got, c.want) || (err != nil) != c.wrong || time.Since(began) != c.after || out.String() != c.says {
				t.Errorf("%s: %v %v after %v\n%s", c.name, got, err, time.Since(began), out.String())
			}
		})
	}
}

// A view is read over any connection; what an older control plane does not have
// is told apart from what went wrong.
func TestReadView(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/told", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "localhost" {
			w.WriteHeader(http.StatusForbidden)
		}
		_, _ = w.Write([]byte(`{"destinations":{"x@10.0.0.1":3}}`))
	})
	mux.HandleFunc("/api/v1/broken", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	server := httptest.NewServer(mux)
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}}}
	var told dashboard.Told
	if err := read(t.Context(), client, view{"told", &told}); err != nil || told.Destinations["x@10.0.0.1"] != 3 {
		t.Errorf("%v %v", told, err)
	}
	if err := read(t.Context(), client, view{"other", &told}); !errors.Is(err, errNoView) {
		t.Errorf("a view that is not there: %v", err)
	}
	if err := read(t.Context(), client, view{"broken", &told}); err == nil || errors.Is(err, errNoView) || !strings.Contains(err.Error(), "503") {
		t.Errorf("a view that fails: %v", err)
	}
}

func TestBlind(t *testing.T) {
	if got := blind([]string{"a/1", "a/2", "a/3", "a/4", "a/5", "a/6", "a/7"}); !strings.Contains(got, "a/1, a/2, a/3, a/4, a/5 and 2 more;") {
		t.Error(got)
	}
	if got := lookAt("shop/web-1"); got != "see why with: kubectl -n shop logs web-1 -c tulle-proxy; new pods will: tulle mesh --all-workloads-of shop" {
		t.Error(got)
	}
}
