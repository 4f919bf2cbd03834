package peer

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

const websocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455 section 1.3

// websocket is an echo server (RFC 6455): websocket ADDR.
func websocket(args []string) int {
	if len(args) != 1 {
		return 2
	}
	return listenAndServe(args[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			http.Error(w, "this is a WebSocket server", http.StatusUpgradeRequired)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + websocketGUID))
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			base64.StdEncoding.EncodeToString(sum[:]))
		rw.Flush()
		for {
			op, text, err := readFrame(rw.Reader)
			if err != nil {
				return
			}
			conn.Write(frame(op, text, nil))
			if op == opClose {
				return
			}
		}
	}))
}

const (
	opText  = 1
	opClose = 8
)

// wsdial talks to the echo server: wsdial HOST:PORT TEXT… It prints the
// handshake's status line and accept header, then every echo.
func wsdial(args []string) int {
	if len(args) < 1 {
		return 2
	}
	conn, err := net.DialTimeout("tcp", args[0], patience)
	if err != nil {
		fmt.Println("dial:", word(err))
		return 1
	}
	defer conn.Close()
	// The first frame follows the handshake at once: bytes that an upgrading
	// proxy has read too far must not be lost.
	mask := []byte{1, 2, 3, 4}
	hello := fmt.Appendf(nil, "GET /chat HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", args[0])
	if _, err := conn.Write(hello); err != nil {
		fmt.Println("handshake:", word(err))
		return 1
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		fmt.Println("handshake:", word(err))
		return 1
	}
	fmt.Println(resp.Status, resp.Header.Get("Upgrade"), resp.Header.Get("Connection"), resp.Header.Get("Sec-WebSocket-Accept"))
	for _, text := range args[1:] {
		conn.Write(frame(opText, []byte(text), mask))
	}
	conn.Write(frame(opClose, nil, mask))
	for {
		op, text, err := readFrame(in)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Printf("op %d %q\n", op, text)
		if op == opClose {
			rest, err := io.ReadAll(in)
			fmt.Println("then", len(rest), err)
			return 0
		}
	}
}

// frame encodes one unfragmented frame; mask is nil for a server's.
func frame(op byte, text, mask []byte) []byte {
	b := []byte{0x80 | op}
	masked := byte(0)
	if mask != nil {
		masked = 0x80
	}
	switch {
	case len(text) < 126:
		b = append(b, masked|byte(len(text)))
	case len(text) < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(len(text)))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), uint64(len(text)))
	}
	b = append(b, mask...)
	for i, c := range text {
		if mask != nil {
			c ^= mask[i%4]
		}
		b = append(b, c)
	}
	return b
}

func readFrame(r io.Reader) (op byte, text []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1] & 0x7f)
	if width := map[uint64]int{126: 2, 127: 8}[n]; width > 0 {
		var long [8]byte
		if _, err := io.ReadFull(r, long[8-width:]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(long[:])
	}
	var mask [4]byte
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, mask[:]); err != nil {
			return 0, nil, err
		}
	}
	text = make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return 0, nil, err
	}
	for i := range text {
		text[i] ^= mask[i%4]
	}
	return head[0] & 0x0f, text, nil
}
