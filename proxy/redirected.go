package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
	"github.com/tulle-mesh/tulle/proxy/tcp"
)

// Whether the redirect works cannot be seen from inside: what a workload opens to
// itself is never redirected, nor is what its proxy opens. So somebody outside
// calls a port where nobody listens. Who gets an answer there has met the redirect
// and the listener behind it. Both directions are one transaction, or one entry of
// a map: a workload has both or none.

const (
	redirectProbeTimeout = 5 * time.Second
	maxRedirectProbe     = 4 << 10 // bytes of a request
	redirectPatience     = 5 * time.Second
)

// answerRedirectProbe says on a connection to mesh.RedirectProbePort whether the
// workload can be served, as GET /ready does at the admin port.
func (p *Proxy) answerRedirectProbe(conn *tcp.Conn) {
	p.seenRedirected()
	_ = conn.SetDeadline(time.Now().Add(redirectProbeTimeout))
	request, err := http.ReadRequest(bufio.NewReader(io.LimitReader(conn, maxRedirectProbe)))
	if err != nil {
		return
	}
	status, reason := http.StatusOK, "ready"
	switch {
	case request.Method != http.MethodGet || request.URL.Path != "/ready":
		status, reason = http.StatusNotFound, "only GET /ready is answered here"
	case p.unready() != "":
		status, reason = http.StatusServiceUnavailable, p.unready()
	}
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		status, http.StatusText(status), len(reason)+1, reason)
}

// missRedirect says so if nobody comes by the redirect.
func (p *Proxy) missRedirect(ctx context.Context) {
	timer := time.NewTimer(redirectPatience)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-p.redirected:
		return
	case <-timer.C:
	}
	p.log.Warn("this pod's traffic is not redirected to its proxy, and its containers do not start before it is; type: tulle check, "+
		"and look at the agent of this pod's node: kubectl -n tulle-system get pods -o wide -l app.kubernetes.io/name=tulle-cni",
		"port", mesh.RedirectProbePort)
	select {
	case <-ctx.Done():
	case <-p.redirected:
		p.log.Info("this pod's traffic is redirected now")
	}
}
