package e2e

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// capture reads every frame on every link of the mesh (the bridge and the host's
// ends of all workloads) and counts those that hold a marker.
type capture struct {
	fd      int
	markers []string
	seen    []atomic.Int64
	frames  atomic.Int64
	stop    atomic.Bool
	done    sync.WaitGroup
}

// startCapture begins to count; the test's end closes it.
func startCapture(t *testing.T, markers ...string) *capture {
	t.Helper()
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		t.Fatalf("packet socket: %v", err)
	}
	// A burst must not overflow the socket: a frame that is not seen proves nothing.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
		t.Fatal(err)
	}
	tick := unix.NsecToTimeval(int64(50 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick); err != nil {
		t.Fatal(err)
	}
	c := &capture{fd: fd, markers: markers, seen: make([]atomic.Int64, len(markers))}
	c.done.Go(c.read)
	t.Cleanup(func() {
		c.stopReading()
		unix.Close(fd)
	})
	return c
}

func (c *capture) read() {
	outside := map[int]bool{} // links by index: of the stage without the mesh, or the loopback
	frame := make([]byte, 256<<10)
	for {
		n, from, err := unix.Recvfrom(c.fd, frame, 0)
		if err == unix.EAGAIN && c.stop.Load() {
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok {
			continue
		}
		if _, known := outside[link.Ifindex]; !known {
			i, err := net.InterfaceByIndex(link.Ifindex)
			outside[link.Ifindex] = err == nil && (i.Name == "lo" || strings.HasPrefix(i.Name, plainPrefix))
		}
		if outside[link.Ifindex] {
			continue
		}
		c.frames.Add(1)
		for i, marker := range c.markers {
			if bytes.Contains(frame[:n], []byte(marker)) {
				c.seen[i].Add(1)
			}
		}
	}
}

// stopReading returns after all that had arrived was looked at.
func (c *capture) stopReading() {
	c.stop.Store(true)
	c.done.Wait()
}

// lost returns how many frames the kernel dropped.
func (c *capture) lost(t *testing.T) uint32 {
	t.Helper()
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatal(err)
	}
	return stats.Drops
}

// TestCaptureSees is the other half of every proof by capture: what does cross
// in the clear, a call to a catalog service outside of the mesh, is seen.
func TestCaptureSees(t *testing.T) {
	catalog := write(t, scratch(t), "services.yaml", "services:\n  - name: billing\n    addresses: [%s]\n    ports: [9100]\n", lanFirst)

	host := newHost(t, "--catalog", catalog)
	machine, err := newLAN() // after the inventory: a link takes its time to come up
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(machine.close)
	outside := start(t, machine.argv(peerCommand("web", "--name", "outside", lanFirst+":9100")...)...)
	outside.awaitText(t, outside.stderr, "listening")
	host.serve(t, service{name: "web", port: 9100, argv: peerCommand("web", "--name", "inside", ":9100")})
	for _, c := range []struct {
		name, answer string
		clear        bool
	}{
		{"billing", "outside", true},
		{"web", "inside", false},
	} {
		capture := startCapture(t, marker)
		if r := play(t, host, "curl", "-sS", "http://"+c.name+":9100/"+marker); r.stdout != c.answer+"\n" {
			t.Errorf("%s: %s", c.name, r)
		}
		capture.stopReading()
		if seen := capture.seen[0].Load(); (seen > 0) != c.clear {
			t.Errorf("%s: %d of %d frames held the marker", c.name, seen, capture.frames.Load())
		}
	}
}
