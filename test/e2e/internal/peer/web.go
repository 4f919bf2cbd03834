package peer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// web is an HTTP server that says who answers: web [--name NAME] [--delay D] ADDR.
//
//	/            the server's name (else its address), one line, after the delay
//	/who         the client's address as this server sees it
//	/bytes?n=N   N bytes of the fixed random series, with their length
//	/stream?n=N  the same, chunked, with the SHA-256 as a trailer
//	/dribble     ten small pieces, each flushed on its own
//	/status?code=N
//	/big?n=N     an answer whose head holds N bytes
//	/hang        never answers; prints "client gone" when the client leaves
func web(args []string) int {
	flags := flag.NewFlagSet("web", flag.ContinueOnError)
	delay := flags.Duration("delay", 0, "wait before each answer")
	self := flags.String("name", address(), "what to answer")
	if flags.Parse(args) != nil || flags.NArg() != 1 {
		return 2
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(*delay)
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprintln(w, *self)
	})
	mux.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, host)
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := size(r.FormValue("n"))
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.Copy(w, io.LimitReader(series(), n))
	})
	mux.HandleFunc("/stream", stream)
	mux.HandleFunc("/dribble", func(w http.ResponseWriter, r *http.Request) {
		for i := range 10 {
			fmt.Fprintf(w, "piece %d\n", i)
			http.NewResponseController(w).Flush()
			time.Sleep(10 * time.Millisecond) // pacing: one segment for each piece
		}
	})
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		n, _ := size(r.FormValue("n"))
		for i := range n / 1000 {
			w.Header().Set(fmt.Sprintf("X-Fill-%03d", i), filler(980))
		}
		io.WriteString(w, "end of a big head\n")
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("client came")
		<-r.Context().Done()
		fmt.Println("client gone")
	})
	return listenAndServe(flags.Arg(0), mux)
}

func stream(w http.ResponseWriter, r *http.Request) {
	n, _ := size(r.FormValue("n"))
	w.Header().Set("Trailer", "X-Sha256")
	hash := sha256.New()
	io.Copy(io.MultiWriter(w, hash), io.LimitReader(series(), n))
	w.Header().Set("X-Sha256", hex.EncodeToString(hash.Sum(nil)))
}

// sink takes uploads and answers what it got: sink ADDR.
//
//	/          count, SHA-256, length as declared, transfer coding, trailers
//	/too-big   413 after the first 1000 bytes, the rest is not read
func sink(args []string) int {
	if len(args) != 1 {
		return 2
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		fmt.Fprintf(w, "%s %s %s\ngot %d bytes, declared %d, coding %v, sha256 %s, error %v\n", r.Method, r.RequestURI, r.Proto,
			n, r.ContentLength, r.TransferEncoding, hex.EncodeToString(hash.Sum(nil)), err)
		for name, values := range r.Trailer {
			fmt.Fprintln(w, "trailer", name, values)
		}
	})
	mux.HandleFunc("/too-big", func(w http.ResponseWriter, r *http.Request) {
		io.CopyN(io.Discard, r.Body, 1000)
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		io.WriteString(w, "that is too big\n")
	})
	return listenAndServe(args[0], mux)
}

// listenAndServe serves until SIGTERM; what is being answered then has a
// second to end.
func listenAndServe(addr string, h http.Handler) int {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, "listening")
	server := &http.Server{Handler: h, MaxHeaderBytes: 128 << 10}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-term
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
	}()
	if err := server.Serve(l); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	<-ended
	return 0
}

// address is this network namespace's own global IPv4 address.
func address() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	return "nowhere"
}

func filler(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return string(b)
}
