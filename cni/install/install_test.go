package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const list = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "mtu": 1500}, {"type": "portmap"}]}`

// node returns a node with the given configurations.
func node(t *testing.T, confs map[string]string) Node {
	t.Helper()
	root := t.TempDir()
	n := Node{Conf: filepath.Join(root, "net.d"), Bin: filepath.Join(root, "bin"), Self: filepath.Join(root, "self"), Socket: "/run/x.sock", Log: slog.New(slog.DiscardHandler)}
	for _, dir := range []string{n.Conf, n.Bin} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, n.Self, "program")
	for name, conf := range confs {
		put(t, filepath.Join(n.Conf, name), conf)
	}
	return n
}

func put(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// types returns the plugins of a configuration by type.
func types(t *testing.T, name string) []string {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var conf struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(raw, &conf); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, raw)
	}
	var types []string
	for _, p := range conf.Plugins {
		types = append(types, p.Type)
	}
	return types
}

func (n Node) listing(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(n.Conf)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(n.Conf, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(content)
	}
	return files
}

func TestChainAndRemove(t *testing.T) {
	for _, c := range []struct {
		name  string
		confs map[string]string
		file  string // that is chained
		want  []string
	}{
		{"a list", map[string]string{"10-pods.conflist": list}, "10-pods.conflist", []string{"ptp", "portmap", "tulle-cni"}},
		{"the first is used", map[string]string{"20-b.conflist": list, "10-a.conflist": list}, "10-a.conflist", []string{"ptp", "portmap", "tulle-cni"}},
		{"a single plugin", map[string]string{"10-a.conf": `{"cniVersion":"0.3.1","name":"n","type":"bridge","mtu":1}`}, "10-a.conflist", []string{"bridge", "tulle-cni"}},
		{"a list by a wrong name", map[string]string{"10-a.json": list}, "10-a.conflist", []string{"ptp", "portmap", "tulle-cni"}},
		{"half a file before", map[string]string{"00-x.conflist": `{"plugins": [`, "10-a.conflist": list}, "10-a.conflist", []string{"ptp", "portmap", "tulle-cni"}},
		{"a single plugin beside a list of the same name", map[string]string{"10-a.conf": `{"cniVersion":"0.3.1","name":"n","type":"bridge"}`, "10-a.conflist": list},
			"10-a.conflist", []string{"bridge", "tulle-cni"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := node(t, c.confs)
			if err := n.Program(); err != nil {
				t.Fatal(err)
			}
			before := n.listing(t)
			if err := n.Chained(); err == nil || !strings.Contains(err.Error(), "last in its chain") {
				t.Errorf("Chained before: %v", err)
			}
			if changed, err := n.Chain(); err != nil || !changed {
				t.Fatalf("Chain: %v, %v", changed, err)
			}
			if got := types(t, filepath.Join(n.Conf, c.file)); !slices.Equal(got, c.want) {
				t.Errorf("chained: %v, want %v", got, c.want)
			}
			if changed, err := n.Chain(); err != nil || changed {
				t.Errorf("Chain again: %v, %v, want no change", changed, err)
			}
			if err := n.Chained(); err != nil {
				t.Errorf("Chained: %v", err)
			}
			if err := n.Remove(); err != nil {
				t.Fatal(err)
			}
			if after := n.listing(t); !maps.Equal(after, before) {
				t.Errorf("after Remove there are %v, before there were %v", after, before)
			}
			if entries, _ := os.ReadDir(n.Bin); len(entries) > 0 {
				t.Errorf("Remove left %v", entries)
			}
		})
	}
}

// What others write while a list stands in for their file is theirs, too.
func TestWrittenMeanwhile(t *testing.T) {
	const single, newer = `{"cniVersion":"0.3.1","name":"n","type":"bridge"}`, `{"cniVersion":"0.3.1","name":"n","type":"macvlan"}`
	other := strings.Replace(list, "ptp", "ipvlan", 1)
	for _, c := range []struct {
		name          string
		before, after map[string]string // what there was, and what others write
		want          []string
	}{
		{"its list", map[string]string{"10-a.conf": single}, map[string]string{"10-a.conflist": list}, []string{"ptp", "portmap", "tulle-cni"}},
		{"its list again", map[string]string{"10-a.conf": single, "10-a.conflist": list}, map[string]string{"10-a.conflist": other}, []string{"ipvlan", "portmap", "tulle-cni"}},
		{"its single plugin again", map[string]string{"10-a.conf": single, "10-a.conflist": list}, map[string]string{"10-a.conf": newer}, []string{"macvlan", "tulle-cni"}},
		{"a single plugin beside its list", map[string]string{"10-a.conflist": list}, map[string]string{"10-a.conf": single}, []string{"bridge", "tulle-cni"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := node(t, c.before)
			if changed, err := n.Chain(); err != nil || !changed {
				t.Fatalf("Chain: %v, %v", changed, err)
			}
			want := maps.Clone(c.before)
			for name, conf := range c.after {
				put(t, filepath.Join(n.Conf, name), conf)
				want[name] = conf
			}
			if changed, err := n.Chain(); err != nil || !changed {
				t.Fatalf("Chain: %v, %v", changed, err)
			}
			if got := types(t, filepath.Join(n.Conf, "10-a.conflist")); !slices.Equal(got, c.want) {
				t.Errorf("chained: %v, want %v", got, c.want)
			}
			if err := n.Remove(); err != nil {
				t.Fatal(err)
			}
			if after := n.listing(t); !maps.Equal(after, want) {
				t.Errorf("after Remove there are %v, want %v", after, want)
			}
		})
	}
}

// TestValuesStay makes sure that what we do not understand is kept.
func TestValuesStay(t *testing.T) {
	conf := `{"cniVersion":"1.0.0","name":"x","disableCheck":true,"plugins":[{"type":"a","n":12345678901234567890,"s":"<&>"}]}`
	chained, changed, err := chain([]byte(conf), "/s")
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	back, changed, err := unchain(chained)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if got, want := numbers(t, back), numbers(t, []byte(conf)); !reflect.DeepEqual(got, want) {
		t.Errorf("%s became %s", conf, back)
	}
}

// numbers decodes JSON without rounding.
func numbers(t *testing.T, raw []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestNoConfiguration(t *testing.T) {
	if err := node(t, nil).Chained(); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("Chained: %v, want that the program is missing", err)
	}
	if _, err := node(t, nil).Chain(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want that nothing is there", err)
	}
}

// TestRewritten lets another CNI write its configuration anew, twice.
func TestRewritten(t *testing.T) {
	n := node(t, nil)
	chained := make(chan struct{}, 8)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- n.Watch(ctx, func() { chained <- struct{}{} }) }()
	for range 2 {
		part := filepath.Join(n.Conf, ".part")
		put(t, part, list)
		if err := os.Rename(part, filepath.Join(n.Conf, "10-pods.conflist")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-chained:
		case <-time.After(time.Minute):
			t.Fatal("not chained again")
		}
		if got := types(t, filepath.Join(n.Conf, "10-pods.conflist")); !slices.Contains(got, "tulle-cni") {
			t.Errorf("chain: %v", got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Now and then is once; again and again gets longer pauses, up to a minute.
func TestQuarrel(t *testing.T) {
	var q quarrel
	now := time.Unix(1, 0)
	for i, step := range []struct{ after, want time.Duration }{
		{0, 0}, {time.Hour, 0}, {time.Hour, 0}, {time.Hour, 0}, {time.Hour, 0},
		{0, 0}, {0, 0}, {0, time.Second}, {time.Second, 2 * time.Second}, {2 * time.Second, 4 * time.Second},
		{4 * time.Second, 8 * time.Second}, {8 * time.Second, 16 * time.Second}, {16 * time.Second, 32 * time.Second},
		{40 * time.Second, time.Minute}, {time.Minute, time.Minute}, {time.Minute, time.Minute},
		{71 * time.Second, 0}, {0, 0},
	} {
		now = now.Add(step.after)
		if got := q.again(now); got != step.want {
			t.Errorf("step %d: pause %v, want %v", i, got, step.want)
		}
	}
}

func FuzzChain(f *testing.F) {
	for _, seed := range []string{list, `{"type":"a"}`, `{"plugins":[]}`, `{"plugins":{}}`, `[]`, `{"plugins":[1,null,{"type":"tulle-cni"}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, conf []byte) {
		once, changed, err := chain(conf, "/s")
		if err != nil || !changed {
			return
		}
		if _, changed, err := chain(once, "/s"); err != nil || changed {
			t.Errorf("chained twice: %v, %v", changed, err)
		}
		if back, changed, err := unchain(once); err != nil || !changed || stillChained(back) {
			t.Errorf("unchain: %v, %v: %s", changed, err, back)
		}
	})
}

func stillChained(conf []byte) bool {
	o, err := parseList(conf)
	if err != nil {
		return true
	}
	plugins, err := o.plugins()
	return err != nil || slices.ContainsFunc(plugins, isOurs)
}
