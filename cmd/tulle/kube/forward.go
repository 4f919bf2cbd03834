package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

// OnCluster returns the commands that show a host's mesh so that they show the
// cluster's where host is false and there is a kubeconfig. They talk to the
// control plane through the API server, as `kubectl port-forward` does: the
// dashboard's API listens on that pod's loopback only.
func OnCluster(table []command.Command, host func(args []string) bool) []command.Command {
	var wrapped []command.Command
	for _, c := range table {
		onHost := c.Run
		c.Run = func(ctx context.Context, env *command.Env, args []string) int {
			if (Target{}).Meant(env) && !host(args) {
				err := overForward(ctx, env, c.Name, args, onHost)
				if code := exitCode(0); errors.As(err, &code) {
					return int(code)
				}
				return env.Fail(err)
			}
			return onHost(ctx, env, args)
		}
		wrapped = append(wrapped, c)
	}
	return wrapped
}

// exitCode passes on how a command has ended that has told of its error.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// overForward runs a command with a socket in a folder of its own that leads
// to the control plane.
func overForward(ctx context.Context, env *command.Env, name string, args []string, do func(context.Context, *command.Env, []string) int) error {
	c, err := Target{}.connect(env)
	if err != nil {
		return err
	}
	if name == "why" { // the control plane knows kinds and namespaces
		args = append([]string{"--namespace", cmp.Or(c.namespace, "default")}, args...)
	} else {
		args = inMeshTerms(args, c.namespace)
	}
	t, err := c.tunnel(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	if name == "dashboard" {
		return t.page(ctx, env)
	}
	dir, err := os.MkdirTemp("", "tulle-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	listener, err := net.Listen("unix", filepath.Join(dir, "api.sock"))
	if err != nil {
		return err
	}
	defer listener.Close()
	go t.serve(listener)
	there := *env
	there.Cluster = cmp.Or(c.name, "without a name")
	if code := do(ctx, &there, append([]string{"--run", dir}, args...)); code != command.OK {
		return exitCode(code)
	}
	return nil
}

// tunnel is a connection to a port of a pod, through the API server.
type tunnel struct {
	conn  httpstream.Connection
	count atomic.Int64
}

// tunnel opens one to the replica of the control plane that gathers what the
// proxies report.
func (c *cluster) tunnel(ctx context.Context) (*tunnel, error) {
	replicas, err := c.replicas(ctx)
	if err != nil {
		return nil, err
	}
	return c.tunnelTo(ctx, replicas[0])
}

// replicas returns those of the control plane that are ready, at least one: the
// one that started first, which gathers what the proxies report, comes first.
func (c *cluster) replicas(ctx context.Context) ([]*corev1.Pod, error) {
	pods, err := c.client.CoreV1().Pods(names.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + names.Control})
	if err != nil {
		return nil, c.explain(err)
	}
	if len(pods.Items) == 0 {
		return nil, notInstalled(c)
	}
	var replicas []*corev1.Pod
	for i := range pods.Items {
		if p := &pods.Items[i]; p.DeletionTimestamp == nil && ready(p) {
			replicas = append(replicas, p)
		}
	}
	slices.SortFunc(replicas, func(a, b *corev1.Pod) int {
		return cmp.Or(started(a).Compare(started(b)), cmp.Compare(a.Name, b.Name))
	})
	if len(replicas) == 0 {
		return nil, command.WithHint(errors.New("the cluster's control plane is not ready"), "type: tulle check")
	}
	return replicas, nil
}

func started(p *corev1.Pod) time.Time {
	if p.Status.StartTime == nil {
		return time.Now()
	}
	return p.Status.StartTime.Time
}

func ready(p *corev1.Pod) bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// reachWithin bounds how long it takes to reach a pod: the library knows of no end.
const reachWithin = 15 * time.Second

// tunnelTo reaches the dashboard of a pod of the control plane; the caller closes
// the tunnel.
func (c *cluster) tunnelTo(ctx context.Context, p *corev1.Pod) (*tunnel, error) {
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	url := c.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	ctx, cancel := context.WithTimeout(ctx, reachWithin)
	defer cancel()
	type dialed struct {
		conn httpstream.Connection
		err  error
	}
	done := make(chan dialed)
	go func() {
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		select {
		case done <- dialed{conn, err}:
		case <-ctx.Done():
			if err == nil {
				_ = conn.Close()
			}
		}
	}()
	select {
	case d := <-done:
		if d.err != nil {
			return nil, fmt.Errorf("reach pod %s: %w", p.Name, c.explain(d.err))
		}
		return &tunnel{conn: d.conn}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("reach pod %s: %w", p.Name, c.explain(ctx.Err()))
	}
}

func (t *tunnel) close() { _ = t.conn.Close() }

// serve brings each of the listener's connections to the pod.
func (t *tunnel) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go t.carry(conn)
	}
}

// carry moves bytes both ways until both sides have ended.
func (t *tunnel) carry(conn net.Conn) {
	defer conn.Close()
	header := http.Header{}
	header.Set(corev1.PortHeader, strconv.Itoa(names.DashboardPort))
	header.Set(corev1.PortForwardRequestIDHeader, strconv.FormatInt(t.count.Add(1), 10))
	header.Set(corev1.StreamType, corev1.StreamTypeError)
	failures, err := t.conn.CreateStream(header)
	if err != nil {
		return
	}
	_ = failures.Close() // we have nothing to write there
	header.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := t.conn.CreateStream(header)
	if err != nil {
		return
	}
	defer t.conn.RemoveStreams(failures, data)
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(data, conn)
		_ = data.Close()
	})
	both.Go(func() {
		_, _ = io.Copy(conn, data)
		_ = conn.Close() // ends the other direction, too: nobody is left to answer
	})
	both.Wait()
}

// page serves the dashboard on a port of this machine until ctx ends.
func (t *tunnel) page(ctx context.Context, env *command.Env) error {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", names.DashboardPort))
	if err != nil { // somebody has that port
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return err
	}
	defer listener.Close()
	if _, err := fmt.Fprintf(env.Stdout, "http://%s/ (until Ctrl-C)\n", listener.Addr()); err != nil {
		return err
	}
	go t.serve(listener)
	select {
	case <-ctx.Done():
		return nil
	case <-t.conn.CloseChan():
		return command.WithHint(errors.New("the control plane has ended"), "type the same again")
	}
}
