package redirect

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// A Backend writes Rules into the kernel, in the network namespace it was made
// for. The methods may be called from many goroutines, but the outcome of two
// changes at once is that of either.
type Backend interface {
	// Name is "ebpf", "nftables" or "iptables".
	Name() string

	// Probe reports why the backend cannot be used here, and what to do about
	// it. It changes nothing.
	Probe() error

	// Apply makes the kernel's rules what r says, whatever Apply left there
	// before; doing it twice is as doing it once. No connection slips by while
	// rules are exchanged. On an error the rules are what they were.
	Apply(r Rules) error

	// Remove takes away what Apply wrote, and is content if there is nothing.
	// Connections that had been redirected die with the rules, and new ones
	// pass in plaintext: end the workload first.
	Remove() error
}

// Auto is the name under which Pick takes the first backend that works.
const Auto = "auto"

// Pick returns the backend called want for the network namespace that netns
// refers to; nil stands for that of the calling thread at each call. netns
// must stay open as long as the backend is used. The reason says, for the log,
// why it is this backend.
func Pick(want string, netns *os.File) (backend Backend, reason string, err error) {
	return pick(want, Backends(netns))
}

// Backends returns all of them, the best first, as Pick knows them.
func Backends(netns *os.File) []Backend {
	return []Backend{Node{}.EBPF(netns), NFTables(netns), IPTables(netns)}
}

// Masquerader returns the name of the backend that this machine's own rules may
// use: eBPF only redirects.
func Masquerader() (string, error) {
	b, _, err := pick(Auto, []Backend{NFTables(nil), IPTables(nil)})
	if err != nil {
		return "", err
	}
	return b.Name(), nil
}

func pick(want string, backends []Backend) (backend Backend, reason string, err error) {
	names := []string{Auto}
	var passed []error
	for _, b := range backends {
		names = append(names, b.Name())
		if want != Auto && want != b.Name() {
			continue
		}
		if err := b.Probe(); err != nil {
			passed = append(passed, fmt.Errorf("%s: %w", b.Name(), err))
			continue
		}
		switch {
		case want != Auto:
			return b, "asked for", nil
		case len(passed) == 0:
			return b, "the first choice, and it works here", nil
		default:
			return b, "the best that works here: " + oneLine(passed), nil
		}
	}
	if len(passed) == 0 {
		last := len(names) - 1
		return nil, "", fmt.Errorf("redirect %q: no such backend; use %s or %s", want, strings.Join(names[:last], ", "), names[last])
	}
	return nil, "", fmt.Errorf("cannot redirect traffic: %w", errors.New(oneLine(passed)))
}

// oneLine is errors.Join for a log line.
func oneLine(errs []error) string {
	var lines []string
	for _, err := range errs {
		lines = append(lines, err.Error())
	}
	return strings.Join(lines, "; ")
}
