package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tulle-mesh/tulle/test/bench/ends"
	"github.com/tulle-mesh/tulle/test/bench/figures"
)

func TestParseWrk(t *testing.T) {
	const good = `Running 3s test @ http://10.99.0.3:8080/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   211.52us  506.24us  10.41ms   96.12%
    Req/Sec    88.70k     4.11k   94.34k    80.00%
  Latency Distribution
     50%  107.00us
     75%  203.00us
     90%  392.00us
     99%    1.85ms
  264633 requests in 3.00s, 83.29MB read
Requests/sec:  88181.51
Transfer/sec:     27.75MB
`
	got, err := parseWrk(good)
	want := &ends.Report{Count: 264633, Seconds: 3, P50: 107 * time.Microsecond, P99: 1850 * time.Microsecond}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parseWrk = %+v, %v; want %+v", got, err, want)
	}
	for name, bad := range map[string]string{
		"a failed answer": good + "  Non-2xx or 3xx responses: 4\n",
		"a reset":         good + "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
		"no answer":       strings.Replace(good, "264633", "0", 1),
		"nothing":         "",
	} {
		if got, err := parseWrk(bad); err == nil {
			t.Errorf("%s: parseWrk = %+v, want an error", name, got)
		}
	}
}

func TestConclude(t *testing.T) {
	s := newResults(config{}).sheet("w")
	for i, sample := range []struct{ other, ours float64 }{{10, 5}, {20, 30}, {40, 10}} {
		s.add("haproxy", "f", sample.other)
		s.add(ours, "f", sample.ours)
		s.add("nginx", "f", float64(i-2)) // -2, -1, 0
		s.add("envoy", "f", float64(i))   // 0, 1, 2
		if i == 0 {
			s.add(ours, "only ours", 1)
		}
	}
	s.conclude()
	x := s.find(ours, "f")
	if x.Median != 10 || x.Low != 5 || x.High != 30 {
		t.Errorf("median %v, low %v, high %v", x.Median, x.Low, x.High)
	}
	// Of 0.5, 1.5, 0.25; of none, because a difference below zero has no ratio; of 30, 5.
	if want := map[string]float64{"haproxy": 0.5, "envoy": 17.5}; !maps.Equal(x.Ratios, want) {
		t.Errorf("ratios %v, want %v", x.Ratios, want)
	}
	if only := s.find(ours, "only ours"); only.Ratios != nil {
		t.Errorf("ratios %v of a figure that nobody else has", only.Ratios)
	}
}

func TestVerdict(t *testing.T) {
	less, more := goal{}, goal{moreIsBetter: true}
	for _, c := range []struct {
		goal         goal
		ratio, limit float64
		want         string
	}{
		{less, 0.5, 0.75, "10.00: **0.50**"},
		{less, 0.8, 0.75, "10.00: **0.80**, not yet 0.75"},
		{less, 9, 0, "10.00: **9.00**"},
		{more, 1.2, 1.2, "10.00: **1.20**"},
		{more, 1.1, 1.2, "10.00: **1.10**, not yet 1.20"},
	} {
		mine := &row{Ratios: map[string]float64{"envoy": c.ratio}}
		if got := c.goal.verdict(mine, &row{Row: figures.Row{Peer: "envoy", Median: 10}}, c.limit); got != c.want {
			t.Errorf("%v with a goal of %v: %q, want %q", c.ratio, c.limit, got, c.want)
		}
	}
}

// TestSaveKeepsOtherWorks measures in two parts.
func TestSaveKeepsOtherWorks(t *testing.T) {
	dir := t.TempDir()
	for _, part := range []struct {
		works []string
		value float64
	}{{[]string{"start", "http1-256B-c1"}, 1}, {[]string{"bulk-1", "start"}, 2}} {
		r := newResults(config{rounds: 1})
		for _, name := range part.works {
			r.sheet(name).add(ours, "f", part.value)
		}
		if err := r.save(dir); err != nil {
			t.Fatal(err)
		}
	}
	saved, err := read(filepath.Join(dir, "host.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range saved.Sheets {
		got = append(got, fmt.Sprintf("%s %v", s.Work, s.find(ours, "f").Median))
	}
	if want := []string{"http1-256B-c1 1", "bulk-1 2", "start 2"}; !slices.Equal(got, want) {
		t.Errorf("saved %q, want %q", got, want)
	}
}

func TestParse(t *testing.T) {
	c, err := parse([]string{"memory", "--quick", "http1-256B", "--peers", "tulle,direct"}, "bin")
	if err != nil || !slices.Equal(c.works, []string{"memory", "http1-256B"}) || !c.quick || c.rounds != 1 ||
		!slices.Equal(c.chosenPeers(), []string{"tulle", "direct"}) {
		t.Errorf("parse = %+v, %v", c, err)
	}
	want := [][]string{{"memory"}, {"http1-256B-c1", "http1-256B-c16", "http1-256B-c128"}}
	if got := c.groups(); !reflect.DeepEqual(got, want) {
		t.Errorf("groups %q, want %q", got, want)
	}
	if one, err := parse([]string{"http1-256B-c1"}, "bin"); err != nil || !reflect.DeepEqual(one.groups(), [][]string{{"http1-256B-c1"}}) {
		t.Errorf("of one whole name: %q, %v", one.groups(), err)
	}
	for _, bad := range [][]string{{"nothing"}, {"--peers", "nobody"}} {
		if _, err := parse(bad, "bin"); err == nil || !strings.Contains(err.Error(), "there are") {
			t.Errorf("parse(%q): %v, want an error that lists what there is", bad, err)
		}
	}
}

func TestRender(t *testing.T) {
	l := &lab{config: config{envoy: "envoy"}, dir: "/scratch", files: 20000}
	s := site{clientAddr: "10.0.0.2", serverAddr: "10.0.0.3"}
	for _, p := range []pair{haproxy, haproxyRedirected, nginx, envoy} {
		for _, one := range p.sides(l, s) {
			text, err := p.render(one)
			if err != nil {
				t.Errorf("%s, %s: %v", p.name, one.Side, err)
			}
			want := []string{"/scratch/ca.pem", "/scratch/server.pem", "18443", "8080"}
			if one.Out() {
				want = []string{"/scratch/ca.pem", "/scratch/client.pem", "18080", "10.0.0.3"}
			}
			for _, part := range want {
				if !strings.Contains(text, part) {
					t.Errorf("%s, %s: no %q in\n%s", p.name, one.Side, part, text)
				}
			}
			if strings.HasSuffix(p.conf, ".yaml") {
				if err := yaml.Unmarshal([]byte(text), &map[string]any{}); err != nil {
					t.Errorf("%s, %s: %v\n%s", p.name, one.Side, err, text)
				}
			}
		}
	}
}

func TestWhatIsImpossible(t *testing.T) {
	for _, c := range []struct {
		work  idle
		peer  string
		files int
		want  bool
	}{
		{idle{tcpDoor, 10000}, ours, 20000, true},
		{idle{tcpDoor, 10000}, ours, 1 << 20, false},
		{idle{httpDoor, 10000}, ours, 20000, false},
		{idle{httpDoor, 10000}, "floor", 20000, true},
	} {
		if got := c.work.impossible(c.peer, c.files); (got != "") != c.want {
			t.Errorf("%s, %+v with %d files: %q", c.peer, c.work, c.files, got)
		}
	}
}

func TestOwnProcessIsMeasured(t *testing.T) {
	m, err := memoryOf(os.Getpid())
	if err != nil || m.anon <= 0 || m.rss() <= m.anon {
		t.Errorf("memoryOf = %+v, %v", m, err)
	}
	if _, err := cpu([]int{os.Getpid()}); err != nil {
		t.Error(err)
	}
}
