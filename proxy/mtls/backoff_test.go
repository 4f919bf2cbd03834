package mtls

import (
	"net"
	"strconv"
	"syscall"
	"testing"
)

// Who does not answer is given up, while the caller has time left: the next
// connection may be led elsewhere.
func TestConnectTCP(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil { // room for one that nobody accepts
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(at.(*syscall.SockaddrInet4).Port))
	conn, err := connectTCP(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if conn, err := connectTCP(t.Context(), addr); err == nil {
		_ = conn.Close()
		t.Error("connected beyond what there is room for")
	}
	if _, err := connectTCP(t.Context(), "127.0.0.1"); err == nil {
		t.Error("connected without a port")
	}
}
