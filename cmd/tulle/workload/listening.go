package workload

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
)

// Whether a workload is ready is read from the kernel's table of listeners, not
// found out by connecting: the application would see a client that says nothing,
// and some (MariaDB) lock such clients out.

// listening tells which of the ports have a listener that others can reach, in
// the calling thread's network namespace, and which only one on loopback.
func listening(ports []uint16) (all bool, loopbackOnly []uint16) {
	const tcpListen = "0A"
	open, local := map[uint16]bool{}, map[uint16]bool{}
	for _, table := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[3] != tcpListen {
				continue
			}
			addr, port, ok := parseLocal(fields[1])
			if !ok {
				continue
			}
			if isLoopback(addr) {
				local[port] = true
			} else {
				open[port] = true
			}
		}
	}
	all = true
	for _, p := range ports {
		all = all && open[p]
		if local[p] && !open[p] {
			loopbackOnly = append(loopbackOnly, p)
		}
	}
	return all, loopbackOnly
}

// parseLocal reads "0100007F:1F90". The address is in words of the host's
// byte order.
func parseLocal(s string) (addr []byte, port uint16, ok bool) {
	a, p, ok := strings.Cut(s, ":")
	if !ok {
		return nil, 0, false
	}
	addr, err := hex.DecodeString(a)
	n, err2 := strconv.ParseUint(p, 16, 16)
	return addr, uint16(n), err == nil && err2 == nil && (len(addr) == 4 || len(addr) == 16)
}

// isLoopback takes the kernel's spelling: 127.0.0.0/8 and ::1, with the bytes
// of each word turned round on a little-endian machine.
func isLoopback(addr []byte) bool {
	last := addr[len(addr)-4:]
	for _, b := range addr[:len(addr)-4] {
		if b != 0 {
			return false
		}
	}
	if len(addr) == 4 {
		return last[nativeFirst] == 127
	}
	return last[3-nativeFirst] == 1 && last[nativeFirst] == 0
}

// nativeFirst is the index, in a word that the kernel printed as hexadecimal
// digits, of the byte that comes first on the wire.
var nativeFirst = func() int {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return 3
	}
	return 0
}()
