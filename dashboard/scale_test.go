package dashboard

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/mesh"
)

// A mesh of many proxies, each with many edges: 100 services of ten replicas,
// each of which calls all replicas of two other services.
const (
	manyProxies  = 1000
	edgesOfEach  = 20
	manyServices = 100
	replicasEach = manyProxies / manyServices
	manyRPS      = 5     // of each edge
	manyMemory   = 150e6 // bytes, of the whole process
	manyCPUs     = 0.1   // of the whole process
)

var (
	scale        = flag.Bool("scale", false, "run TestThousandProxies, which takes a minute and both cores")
	scaleProfile = flag.String("scale-profile", "", "write what the control plane did to FILE.cpu and FILE.heap")
	scaleServer  = flag.Bool("scale-server", false, "be the control plane that TestThousandProxies measures")
)

// TestScaleServer is the other process of TestThousandProxies.
func TestScaleServer(t *testing.T) {
	if !*scaleServer {
		t.Skip("it is the other process of TestThousandProxies")
	}
	debug.SetGCPercent(GCPercent)
	debug.SetMemoryLimit(MemoryTarget)
	c := newTestCollector(t, func(config *Config) {
		config.PeerID = func(ctx context.Context) (mesh.ID, error) {
			p, _ := peer.FromContext(ctx)
			return mesh.ParseID(p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].URIs[0].String())
		}
	})
	fillHour(c)
	debug.FreeOSMemory() // what that took besides
	held := certify(t, testID("control"), time.Now().Add(time.Hour))
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{held}, ClientAuth: tls.RequireAnyClientCert})),
		grpc.ReadBufferSize(0), grpc.WriteBufferSize(4<<10),
	)
	tullev1.RegisterTelemetryServer(server, c)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	site, err := Handler(HandlerConfig{Collector: c})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = site.Run(t.Context()) }()
	fmt.Printf("\nlisten %s\n", listener.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "profile" {
			startProfile(t)
		}
		var use syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &use)
		c.mu.Lock()
		s := scaleState{
			CPU: time.Duration(use.Utime.Nano() + use.Stime.Nano()).Seconds(), RSS: residentBytes(), Proxies: len(c.records),
			Reports: c.reports, History: c.history.bytes, Columns: len(c.history.columns), Series: len(c.history.ids), Other: c.history.missed,
			Hour: time.Since(c.history.columns[0].start()).Seconds(),
		}
		c.mu.Unlock()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		s.Heap, s.Stacks, s.Collections = int(m.HeapAlloc), int(m.StackInuse), int(m.NumGC)
		line, _ := json.Marshal(s)
		fmt.Printf("\nstate %s\n", line)
	}
	server.Stop()
	endProfile(t)
}

func startProfile(t *testing.T) {
	f, err := os.Create(*scaleProfile + ".cpu")
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func endProfile(t *testing.T) {
	if *scaleProfile == "" {
		return
	}
	pprof.StopCPUProfile()
	f, err := os.Create(*scaleProfile + ".heap")
	if err == nil {
		err = errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

type scaleState struct {
	CPU, Hour                                                         float64
	RSS, Heap, Proxies, History, Columns, Series, Stacks, Collections int
	Reports, Other                                                    uint64
}

func residentBytes() int {
	b, _ := os.ReadFile("/proc/self/statm")
	pages, _ := strconv.Atoi(strings.Fields(string(b))[1])
	return pages * os.Getpagesize()
}

// scaleEdge is what the i-th proxy's e-th edge calls.
func scaleEdge(i, e int) (service, replica string) {
	s := (i/replicasEach*7 + e/replicasEach*13 + 1) % manyServices
	return scaleService(s * replicasEach), scaleReplica(s*replicasEach + e%replicasEach)
}

func scaleService(i int) string { return fmt.Sprintf("service-%d", i/replicasEach) }
func scaleReplica(i int) string { return fmt.Sprintf("%s-%d", scaleService(i), i%replicasEach) }

// fillHour makes the hour before the beginning what it would be by then.
func fillHour(c *Collector) {
	rng := rand.New(rand.NewPCG(1, 1))
	var variants []*column
	for range 12 {
		amounts := map[uint32]amount{}
		for i := range manyProxies {
			for e := range edgesOfEach {
				service, replica := scaleEdge(i, e)
				key := edgeRow{
					source: scaleService(i), kind: kindWorkload, identity: testID(scaleService(i)).String(),
					service: service, serviceKind: kindService, security: "mtls", protocol: "http/1",
				}
				var dense [mesh.Buckets]uint64
				for range manyRPS * int(slice/time.Second) {
					dense[mesh.BucketOf(randomLatency(rng))]++
				}
				p := sparseOf(&dense).pack()
				place := replicaPlace{service, replica, "10.84.0.9:8080"}
				for _, k := range []seriesKey{{edge: key}, {replica: place}} {
					id := c.history.id(k, c.open.oldest)
					amounts[id] = amounts[id].plus(amount{counts{requests: p.total(), sent: 9000, received: 90000}, p})
				}
			}
		}
		variants = append(variants, newColumn(0, 1, amounts))
	}
	for n := c.open.oldest - keepSlices; n < c.open.oldest; n++ {
		column := *variants[n%12]
		column.first, column.data, column.marks = n, slices.Clone(column.data), slices.Clone(column.marks)
		c.history.push(&column)
	}
}

// scaleProxy reports like a proxy until ctx ends.
func scaleProxy(ctx context.Context, t *testing.T, address string, i int) error {
	held := certify(t, testID(scaleService(i)), time.Now().Add(time.Hour))
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{held}, InsecureSkipVerify: true, // it is our own process
	})), grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stream, err := tullev1.NewTelemetryClient(conn).Attach(ctx)
	if err != nil {
		return err
	}
	send := func(m *tullev1.ProxyMessage) error { return stream.Send(m) }
	if err := send(&tullev1.ProxyMessage{Message: &tullev1.ProxyMessage_Hello{Hello: &tullev1.Hello{
		Workload: scaleReplica(i), Version: "1", Redirect: "nftables", StartUnixMs: time.Now().UnixMilli(),
	}}}); err != nil {
		return err
	}
	pace := make(chan time.Duration, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			if p := m.GetPace(); p != nil {
				pace <- time.Duration(p.ReportEveryMs) * time.Millisecond
			}
		}
	}()
	rng := rand.New(rand.NewPCG(uint64(i), 2))
	var edges []*scaleTraffic
	for e := range edgesOfEach {
		edges = append(edges, newScaleTraffic(rng, i, e))
	}
	every, last := time.Second, time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case every = <-pace:
			tick.Reset(every)
		case now := <-tick.C:
			r := &tullev1.Report{Proxy: &tullev1.ProxyStats{RssBytes: 1 << 20, CertNotAfterUnix: now.Unix() + 3600}}
			for _, e := range edges {
				for range int(now.Sub(last).Seconds()*manyRPS + 0.5) {
					e.count(randomLatency(rng), 1)
				}
				r.Edges = append(r.Edges, e.message())
				r.Endpoints = append(r.Endpoints, &tullev1.EndpointStats{
					Service: e.edge.Service, Workload: e.edge.PeerWorkload, Address: e.edge.PeerAddress, EwmaMicros: 4000 + rng.Float64(), Ready: true,
				})
			}
			last = now
			if err := send(reportMessage(r)); err != nil {
				return err
			}
		}
	}
}

// scaleTraffic is an edge of which, as real proxies do, only what changed is told.
type scaleTraffic struct {
	*traffic
	changed map[int]bool
	told    bool
}

// newScaleTraffic has an hour behind it.
func newScaleTraffic(rng *rand.Rand, i, e int) *scaleTraffic {
	s := &scaleTraffic{outbound(scaleEdge(i, e)), map[int]bool{}, false}
	s.edge.Number = uint32(e + 1)
	const each = 60
	for range manyRPS * 3600 / each {
		s.count(randomLatency(rng), each)
	}
	return s
}

func (s *scaleTraffic) count(d time.Duration, n uint64) {
	bucket := mesh.BucketOf(d)
	s.counts[bucket] += n
	s.changed[bucket] = true
	s.edge.Requests += n
	s.edge.Statuses[200] += n
	s.edge.BytesSent, s.edge.BytesReceived = s.edge.BytesSent+300*n, s.edge.BytesReceived+3000*n
}

func (s *scaleTraffic) message() *tullev1.Edge {
	m := &tullev1.Edge{
		Number: s.edge.Number, Requests: s.edge.Requests, Statuses: map[uint32]uint64{200: s.edge.Statuses[200]},
		BytesSent: s.edge.BytesSent, BytesReceived: s.edge.BytesReceived, Latency: &tullev1.Histogram{},
	}
	if !s.told {
		m.Service, m.PeerIdentity, m.PeerWorkload = s.edge.Service, s.edge.PeerIdentity, s.edge.PeerWorkload
		m.PeerAddress, m.Security, m.Protocol = s.edge.PeerAddress, s.edge.Security, s.edge.Protocol
		s.told = true
	}
	for _, bucket := range slices.Sorted(maps.Keys(s.changed)) {
		m.Latency.Bucket = append(m.Latency.Bucket, uint32(bucket))
		m.Latency.Count = append(m.Latency.Count, s.counts[bucket])
	}
	clear(s.changed)
	return m
}

// TestThousandProxies holds a control plane with a whole hour of history and
// 20,000 edges of proxies to its memory and CPU. That is a process of its own,
// with all that it takes: TLS, gRPC, the collector, the runtime. The proxies are
// goroutines of this process, which counts for nothing. Type:
// go test ./dashboard -run ThousandProxies -scale -v
func TestThousandProxies(t *testing.T) {
	if !*scale {
		t.Skip("not asked for: -scale")
	}
	server := exec.Command(os.Args[0], "-test.run=^TestScaleServer$", "-scale-server", "-scale-profile="+*scaleProfile)
	in, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _, _ = io.Copy(io.Discard, out); _ = server.Wait() }()
	lines := bufio.NewScanner(out)
	wait := func(prefix string) string {
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return rest
			}
		}
		t.Fatal("the server ended")
		return ""
	}
	state := func() (s scaleState) {
		_, _ = fmt.Fprintln(in, "state")
		if err := json.Unmarshal([]byte(wait("state ")), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	address := wait("listen ")
	ctx, cancel := context.WithCancel(t.Context())
	var proxies sync.WaitGroup
	for i := range manyProxies {
		proxies.Go(func() {
			if err := scaleProxy(ctx, t, address, i); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	for end := time.Now().Add(time.Minute); state().Reports < 4*manyProxies && time.Now().Before(end); {
		time.Sleep(200 * time.Millisecond)
	}
	if *scaleProfile != "" {
		_, _ = fmt.Fprintln(in, "profile")
		wait("state ")
	}
	before, began, most := state(), time.Now(), 0
	for range 20 {
		time.Sleep(time.Second)
		most = max(most, state().RSS)
	}
	after := state()
	cancel()
	proxies.Wait()
	seconds := time.Since(began).Seconds()
	cpus := (after.CPU - before.CPU) / seconds
	t.Logf("%d proxies, %d edges of theirs in %d series: %.3f CPUs, %.0f reports per second, %d collections of garbage; %d MiB resident at most: "+
		"%d MiB heap (of which %d MiB of history in %d columns over %.0f s), %d MiB stacks; %d as other",
		after.Proxies, after.Proxies*edgesOfEach, after.Series, cpus, float64(after.Reports-before.Reports)/seconds, after.Collections-before.Collections,
		most>>20, after.Heap>>20, after.History>>20, after.Columns, after.Hour, after.Stacks>>20, after.Other)
	if after.Proxies != manyProxies || after.Other != 0 || after.Hour < 3500 {
		t.Errorf("%+v", after)
	}
	if most > manyMemory {
		t.Errorf("%d MiB are resident, at most %d are planned", most>>20, int(manyMemory)>>20)
	}
	if cpus > manyCPUs {
		t.Errorf("it took %.3f CPUs, at most %g are planned", cpus, manyCPUs)
	}
}
