package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echoService answers on any method of service "echo".
func echoService(_ any, s grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(s)
	in := &wrapperspb.StringValue{}
	switch method {
	case "/echo/unary":
		if err := s.RecvMsg(in); err != nil {
			return err
		}
		md, _ := metadata.FromIncomingContext(s.Context())
		s.SetTrailer(metadata.Pairs("x-trailer", strings.Join(md.Get("x-question"), ",")))
		return s.SendMsg(in)
	case "/echo/bidi":
		for {
			if err := s.RecvMsg(in); err != nil {
				if err == io.EOF {
					return nil
				}
				return err
			}
			if err := s.SendMsg(in); err != nil {
				return err
			}
		}
	case "/echo/collect":
		n := 0
		for s.RecvMsg(in) == nil {
			n += len(in.Value)
		}
		return s.SendMsg(wrapperspb.String(fmt.Sprint(n)))
	case "/echo/flood":
		for i := range 2000 {
			if err := s.SendMsg(wrapperspb.String(fmt.Sprint(i, strings.Repeat("x", 1000)))); err != nil {
				return err
			}
		}
		return nil
	case "/echo/fail":
		return status.Error(codes.NotFound, "no such thing: 100 % \n gone")
	case "/echo/trailers":
		s.SetTrailer(metadata.Pairs("x-big", strings.Repeat("t", 40_000)))
		return s.SendMsg(wrapperspb.String("ok"))
	case "/echo/hang":
		<-s.Context().Done()
		return s.Context().Err()
	}
	return status.Error(codes.Unimplemented, method)
}

func newGRPCApp(t testing.TB, opts ...grpc.ServerOption) (net.Addr, *grpc.Server) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(opts, grpc.UnknownServiceHandler(echoService))...)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return ln.Addr(), server
}

func newGRPCClient(t testing.TB, addr string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var bidi = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// grpcTalks are conversations whose logs must be the same on all ways.
var grpcTalks = []struct {
	name string
	talk func(ctx context.Context, c *grpc.ClientConn) string
}{
	{"unary", func(ctx context.Context, c *grpc.ClientConn) string {
		var trailer metadata.MD
		out := &wrapperspb.StringValue{}
		err := c.Invoke(metadata.AppendToOutgoingContext(ctx, "x-question", "what"), "/echo/unary", wrapperspb.String("hello"), out, grpc.Trailer(&trailer))
		return fmt.Sprint(out.Value, trailer, err)
	}},
	{"error in trailers only", func(ctx context.Context, c *grpc.ClientConn) string {
		return fmt.Sprint(c.Invoke(ctx, "/echo/fail", wrapperspb.String(""), &wrapperspb.StringValue{}))
	}},
	{"big trailers", func(ctx context.Context, c *grpc.ClientConn) string {
		var trailer metadata.MD
		err := c.Invoke(ctx, "/echo/trailers", wrapperspb.String(""), &wrapperspb.StringValue{}, grpc.Trailer(&trailer))
		return fmt.Sprint(len(trailer.Get("x-big")[0]), err)
	}},
	{"deadline", func(ctx context.Context, c *grpc.ClientConn) string {
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		return status.Code(c.Invoke(ctx, "/echo/hang", wrapperspb.String(""), &wrapperspb.StringValue{})).String()
	}},
	{"cancel", func(ctx context.Context, c *grpc.ClientConn) string {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := c.NewStream(ctx, bidi, "/echo/bidi")
		if err != nil {
			return err.Error()
		}
		err = s.SendMsg(wrapperspb.String("x"))
		got := &wrapperspb.StringValue{}
		err = errors.Join(err, s.RecvMsg(got))
		cancel()
		return fmt.Sprint(got.Value, err, status.Code(s.RecvMsg(got)))
	}},
	{"bidirectional", func(ctx context.Context, c *grpc.ClientConn) string {
		s, err := c.NewStream(ctx, bidi, "/echo/bidi")
		if err != nil {
			return err.Error()
		}
		var log strings.Builder
		for i := range 100 {
			err := s.SendMsg(wrapperspb.String(fmt.Sprint(i)))
			got := &wrapperspb.StringValue{}
			fmt.Fprintln(&log, err, s.RecvMsg(got), got.Value)
		}
		err = s.CloseSend()
		return fmt.Sprint(log.String(), err, s.RecvMsg(&wrapperspb.StringValue{}))
	}},
	{"client stream", func(ctx context.Context, c *grpc.ClientConn) string {
		s, err := c.NewStream(ctx, bidi, "/echo/collect")
		if err != nil {
			return err.Error()
		}
		for range 3000 {
			if err := s.SendMsg(wrapperspb.String(strings.Repeat("y", 1000))); err != nil {
				return err.Error()
			}
		}
		err = s.CloseSend()
		got := &wrapperspb.StringValue{}
		return fmt.Sprint(err, s.RecvMsg(got), got.Value)
	}},
	{"server stream", func(ctx context.Context, c *grpc.ClientConn) string {
		s, err := c.NewStream(ctx, bidi, "/echo/flood")
		if err != nil {
			return err.Error()
		}
		n, total := 0, 0
		got := &wrapperspb.StringValue{}
		err = s.CloseSend()
		for ; err == nil; n++ {
			if err = s.RecvMsg(got); err == nil {
				total += len(got.Value)
			}
		}
		return fmt.Sprint(n, total, err)
	}},
}

func TestGRPCTransparency(t *testing.T) {
	for _, talk := range grpcTalks {
		t.Run(talk.name, func(t *testing.T) {
			t.Parallel()
			app, _ := newGRPCApp(t)
			want := ""
			for _, way := range h2Ways {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				defer cancel()
				got := talk.talk(ctx, newGRPCClient(t, way.target(t, app)))
				if want == "" {
					want = got
				}
				if got != want {
					t.Errorf("%s:\n%s\nwithout the mesh:\n%s", way.name, got, want)
				}
			}
		})
	}
}

// TestGRPCTenThousandStreams holds ten thousand streams open at once on one
// connection, through connections that carry fewer each.
func TestGRPCTenThousandStreams(t *testing.T) {
	for _, limit := range []uint32{0, 1000} {
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			var opts []grpc.ServerOption
			if limit > 0 {
				opts = append(opts, grpc.MaxConcurrentStreams(limit))
			}
			app, _ := newGRPCApp(t, opts...)
			c := newGRPCClient(t, newTestPair(t, app, false).addr)
			ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
			defer cancel()
			const n = 10_000
			streams := make([]grpc.ClientStream, n)
			var failed atomic.Int64
			each := func(f func(i int) error) {
				var group sync.WaitGroup
				for w := range 16 {
					group.Go(func() {
						for i := w; i < n; i += 16 {
							if err := f(i); err != nil && failed.Add(1) == 1 {
								t.Error(i, err)
							}
						}
					})
				}
				group.Wait()
			}
			each(func(i int) (err error) {
				if streams[i], err = c.NewStream(ctx, bidi, "/echo/bidi"); err != nil {
					return err
				}
				return streams[i].SendMsg(wrapperspb.String(fmt.Sprint(i)))
			})
			if t.Failed() {
				return
			}
			each(func(i int) error {
				got := &wrapperspb.StringValue{}
				if err := streams[i].RecvMsg(got); err != nil {
					return err
				}
				if got.Value != fmt.Sprint(i) {
					return fmt.Errorf("got %q", got.Value)
				}
				return streams[i].CloseSend()
			})
			each(func(i int) error {
				if err := streams[i].RecvMsg(&wrapperspb.StringValue{}); err != io.EOF {
					return err
				}
				return nil
			})
		})
	}
}

// TestGRPCRotation: an application that ends its connections every now and then
// (GOAWAY) loses no call.
func TestGRPCRotation(t *testing.T) {
	app, _ := newGRPCApp(t, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 30 * time.Millisecond, MaxConnectionAgeGrace: 5 * time.Second}))
	pair := newTestPair(t, app, false)
	c := newGRPCClient(t, pair.addr)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var group sync.WaitGroup
	var calls atomic.Int64
	end := time.Now().Add(time.Second)
	for range 8 {
		group.Go(func() {
			for time.Now().Before(end) {
				got := &wrapperspb.StringValue{}
				if err := c.Invoke(ctx, "/echo/unary", wrapperspb.String("hello"), got); err != nil || got.Value != "hello" {
					t.Error(err, got.Value)
					return
				}
				calls.Add(1)
			}
		})
	}
	group.Wait()
	t.Logf("%d calls", calls.Load())
}
