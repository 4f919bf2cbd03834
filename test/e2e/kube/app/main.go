// Command app is what runs in the pods of the scenarios: the programs of
// test/e2e/internal/peer, and a few that only a cluster needs.
//
//	app web|load|dial|smtpd|… ARGS   see package peer
//	app grpc ADDR                    a gRPC server that says it is healthy, until SIGTERM
//	app call [-n COUNT] ADDR         asks it; with -now instead of a count once, without waiting for one who answers
//	app fetch [-4|-6] URL            prints the answer to one GET, exit code 1 unless it is 200; over IPv4, or IPv6, alone
//	app each [-4|-6] URL...          makes a GET of each URL, all at once, and prints a line of JSON about each, in their order
//	app web6 ADDR                    an HTTP server on IPv6 alone that answers with its client's address, until SIGTERM
//	app certify ADDR [NAME]          asks the authority for a certificate, with the token on stdin and NAME in the
//	                                 request, and prints the name that it gets, exit code 1 if it gets none
//	app hold                         does nothing until SIGTERM
//	app cat|touch|rm FILE...         as usual
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/test/e2e/internal/peer"
)

// patience bounds a request.
const patience = 20 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	programs := map[string]func(context.Context, []string) error{"grpc": serveGRPC, "call": call, "fetch": fetch, "each": each, "web6": web6, "hold": hold,
		"certify": certify, "cat": cat, "touch": touch, "rm": remove}
	if len(os.Args) < 2 || programs[os.Args[1]] == nil {
		stop()
		os.Exit(peer.Main(os.Args[1:]))
	}
	if err := programs[os.Args[1]](ctx, os.Args[2:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func hold(ctx context.Context, _ []string) error {
	<-ctx.Done()
	return nil
}

func serveGRPC(ctx context.Context, args []string) error {
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, health.NewServer())
	context.AfterFunc(ctx, server.GracefulStop)
	return server.Serve(listener)
}

func call(ctx context.Context, args []string) error {
	count, wait := 1, true
	switch {
	case len(args) > 2 && args[0] == "-n":
		count, _ = strconv.Atoi(args[1])
		args = args[2:]
	case args[0] == "-now":
		wait, args = false, args[1:]
	}
	conn, err := grpc.NewClient("passthrough:///"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	for range count {
		ctx, cancel := context.WithTimeout(ctx, patience)
		answer, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(wait))
		cancel()
		if err != nil {
			return err
		}
		fmt.Println(answer.Status)
	}
	return nil
}

func fetch(ctx context.Context, args []string) error {
	family := ""
	if len(args) > 1 {
		family, args = args[0], args[1:]
	}
	answer, err := get(ctx, family, args[0])
	fmt.Print(answer)
	return err
}

// get makes one GET, over the family -4 or -6 alone, or over any. What came of the
// answer is returned beside an error.
func get(ctx context.Context, family, url string) (string, error) {
	client := &http.Client{Timeout: patience}
	if network, only := map[string]string{"-4": "tcp4", "-6": "tcp6"}[family]; only {
		client.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		}}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(body), err
}

// outcome is what each prints about a GET.
type outcome struct{ Answer, Error string }

func each(ctx context.Context, args []string) error {
	var all []*outcome
	var running sync.WaitGroup
	for family := ""; len(args) > 0; args = args[1:] {
		if strings.HasPrefix(args[0], "-") {
			family = args[0]
			continue
		}
		o := new(outcome)
		all = append(all, o)
		of, url := family, args[0]
		family = ""
		running.Go(func() {
			answer, err := get(ctx, of, url)
			o.Answer = strings.TrimSpace(answer)
			if err != nil {
				o.Error = err.Error()
			}
		})
	}
	running.Wait()
	out := json.NewEncoder(os.Stdout)
	for _, o := range all {
		if err := out.Encode(o); err != nil {
			return err
		}
	}
	return nil
}

func web6(ctx context.Context, args []string) error {
	listener, err := net.Listen("tcp6", args[0])
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, host)
	})}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// certify believes whoever answers: the one to be tested is the authority.
func certify(ctx context.Context, args []string) error {
	token, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<16))
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	wish := &x509.CertificateRequest{}
	if len(args) > 1 {
		name, err := url.Parse(args[1])
		if err != nil {
			return err
		}
		wish.URIs = []*url.URL{name}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, wish, key)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+args[0], grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := tullev1.NewIdentityClient(conn).Certify(ctx, &tullev1.CertifyRequest{Csr: csr, Token: string(token)}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(answer.Chain[0])
	if err != nil {
		return err
	}
	fmt.Println(leaf.URIs, leaf.DNSNames, leaf.Subject)
	return nil
}

func cat(_ context.Context, names []string) error {
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		os.Stdout.Write(content)
	}
	return nil
}

func touch(_ context.Context, names []string) error {
	for _, name := range names {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func remove(_ context.Context, names []string) error {
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}
