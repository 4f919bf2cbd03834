package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"
)

// inventory is what there is on the host, one line for each thing: links,
// addresses, routes, rules, sysctls, namespaces, mounts, files, processes.
type inventory map[string]bool

// compare fails the test if the host is not as it was. Processes that are about
// to end get the time to.
func (before inventory) compare(t *testing.T) {
	t.Helper()
	var diff []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if diff = before.diff(takeInventory(t)); len(diff) == 0 {
			return
		}
	}
	t.Errorf("the host is not as it was before tulle up:\n%s", strings.Join(diff, "\n"))
}

func (before inventory) diff(after inventory) []string {
	var diff []string
	for line := range after {
		if !before[line] {
			diff = append(diff, "left behind: "+line)
		}
	}
	for line := range before {
		if !after[line] {
			diff = append(diff, "gone: "+line)
		}
	}
	sort.Strings(diff)
	return diff
}

// withoutEmptyTables leaves out the empty tables that iptables(8) makes on
// first use and has no command to remove.
const withoutEmptyTables = ` | tr '\n' '\f' | sed -E 's/table ip6? (nat|mangle|raw|filter) \{\f(\tchain [A-Z]+ \{\f\t\ttype [^\f]*\f\t\}\f\f?)*\}\f//g' | tr '\f' '\n'`

// volatile matches what changes on its own.
var volatile = regexp.MustCompile(`nf_conntrack_(count|buckets|max)|\b` + plainPrefix + `[0-9-]|/net/ipv4/tcp_fastopen_key|neigh/|\bvalid_lft\b`)

func takeInventory(t *testing.T) inventory {
	t.Helper()
	found := inventory{}
	add := func(kind, text string) {
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && !volatile.MatchString(line) {
				found[kind+": "+line] = true
			}
		}
	}
	for _, q := range []struct{ kind, command string }{
		{"link", "ip -o link show | sed 's/ state .*//'"},
		{"address", "ip -o address show | sed -e 's/valid_lft.*//' -e 's/ tentative//' -e 's/ dadfailed//'"},
		{"route", "ip route show table all; ip -6 route show table all"},
		{"rule", "ip rule show; ip -6 rule show"},
		{"nftables", "nft list ruleset" + withoutEmptyTables},
		{"iptables", "iptables-legacy-save 2>/dev/null | grep '^-A'; ip6tables-legacy-save 2>/dev/null | grep '^-A'"},
		{"netns", "ls /run/netns 2>/dev/null"},
		{"cgroup", "find /sys/fs/cgroup -type d"},
	} {
		out, _ := exec.Command("sh", "-c", q.command).Output()
		add(q.kind, string(out))
	}
	add("sysctl", sysctls())
	add("process", processes())
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	add("mount", string(mounts))
	for _, dir := range []string{"/run", os.TempDir(), "/etc/netns"} {
		add("file", filesUnder(dir))
	}
	return found
}

// sysctls lists /proc/sys/net with values, as far as it can be read.
func sysctls() string {
	var text strings.Builder
	filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if value, err := os.ReadFile(path); err == nil {
				text.WriteString(path + " = " + strings.Join(strings.Fields(string(value)), " ") + "\n")
			}
		}
		return nil
	})
	return text.String()
}

// processes lists the commands that run now but for the tests' own short-lived
// ones; zombies are init's to reap and do not count.
func processes() string {
	var text strings.Builder
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		argv, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(argv) == 0 {
			continue
		}
		if line := strings.ReplaceAll(string(argv), "\x00", " "); !strings.HasPrefix(line, "sh -c") {
			text.WriteString(filepath.Base(dir) + " " + line + "\n")
		}
	}
	return text.String()
}

// filesUnder lists the files in dir; among the temporary ones those that name
// tulle, the others are the tests' own.
func filesUnder(dir string) string {
	var text strings.Builder
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || path == "/run/xtables.lock" || path == "/run/mount": // of iptables and mount(8)
			return nil
		case path == scratchRoot && dir != os.TempDir(), filepath.Dir(path) == os.TempDir() && !strings.Contains(d.Name(), "tulle"):
			return filepath.SkipDir
		}
		text.WriteString(path + "\n")
		return nil
	})
	return text.String()
}
