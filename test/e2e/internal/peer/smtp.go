package peer

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"strings"
)

// smtpd is a mail server that keeps nothing: smtpd ADDR. As RFC 5321 section
// 3.1 wants, it speaks first.
func smtpd(args []string) int {
	if len(args) != 1 {
		return 2
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, "listening")
	for {
		conn, err := l.Accept()
		if err != nil {
			return 1
		}
		go smtpSession(conn)
	}
}

func smtpSession(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	reply := func(line string) { fmt.Fprintf(conn, "%s\r\n", line) }
	reply("220 peer ready")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " ")
		switch verb {
		case "EHLO":
			reply("250-peer\r\n250 SIZE 10000000")
		case "HELO", "MAIL", "RCPT", "RSET", "NOOP":
			reply("250 fine")
		case "DATA":
			reply("354 go on")
			reply("250 kept " + mailSum(in))
		case "QUIT":
			reply("221 bye")
			return
		default:
			reply("502 what?")
		}
	}
}

func mailSum(in *bufio.Reader) string {
	hash := sha256.New()
	for {
		line, err := in.ReadString('\n')
		if err != nil || line == ".\r\n" {
			return hex.EncodeToString(hash.Sum(nil))
		}
		hash.Write([]byte(line))
	}
}
