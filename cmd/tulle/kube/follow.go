package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/dashboard"
	"github.com/tulle-mesh/tulle/mesh"
	names "github.com/tulle-mesh/tulle/mesh/cluster"
)

// A proxy goes on with what it knows while there is no control plane. It does so
// for a moment after that was replaced, too: until it has found the new one, and
// heard from it. Of pods that are replaced meanwhile it knows the old ones only,
// and answers 502 when those are gone. So who replaces the control plane waits
// for the proxies, and who replaces pods looks at them first.

const (
	// followWithin is more than a proxy takes that has to find out by itself that
	// its control plane is gone: 40 s (see proxy/mtls), and its next attempt.
	followWithin = 2 * time.Minute
	// othersWithin is for those that followed nobody before either.
	othersWithin = 30 * time.Second
	followEvery  = time.Second
	// lookTimeout bounds the questions to the control plane, once the pods are known.
	lookTimeout = 10 * time.Second
	// maxNamed is how many of many are named.
	maxNamed = 5
)

// following is what there is to know about the proxies that should follow the
// control plane.
type following struct {
	pods []string // NAMESPACE/NAME, with a proxy that runs
	lost []string // of them, those that do not know what is so now
}

// followers asks the control plane, and all of its replicas, what the proxies
// know.
func (c *cluster) followers(ctx context.Context) (f following, err error) {
	err = c.eachPod(ctx, "", meshedPods, func(p *corev1.Pod) {
		if p.Status.Phase == corev1.PodRunning && proxyReady(p) {
			f.pods = append(f.pods, p.Namespace+"/"+p.Name)
		}
	})
	if err != nil || len(f.pods) == 0 {
		return f, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	replicas, err := c.replicas(ctx)
	if err != nil {
		return f, err
	}
	var proxies dashboard.Answer[dashboard.Proxy]
	told := map[string]int{}
	for i, replica := range replicas {
		var views []view
		if i == 0 { // it gathers
			views = append(views, view{"proxies", &proxies})
		}
		var here dashboard.Told
		if told != nil {
			views = append(views, view{"told", &here})
		}
		err := c.ask(ctx, replica, views...)
		if errors.Is(err, errNoView) {
			told = nil // an older version
		} else if err != nil {
			return f, err
		}
		for proxy, n := range here.Destinations {
			told[proxy] += n
		}
	}
	f.lost = lost(f.pods, proxies.Items, told)
	return f, nil
}

// forget takes those that have been seen to follow off the lost ones, and adds
// to them those that do now.
func (f *following) forget(seen map[string]bool) {
	f.lost = slices.DeleteFunc(f.lost, func(pod string) bool { return seen[pod] })
	for _, pod := range f.pods {
		seen[pod] = !slices.Contains(f.lost, pod)
	}
}

// lost returns the pods whose proxy does not know what is so now: it reports to
// nobody, or follows more destinations than it has been told of. Where nobody
// knows what was told (nil), reporting is all that is asked for.
func lost(pods []string, proxies []dashboard.Proxy, told map[string]int) []string {
	key := func(p dashboard.Proxy) string { return p.Identity + "@" + p.Address }
	follows := map[string]int{} // where a node's address hides pods, they share a key
	reports := map[string]dashboard.Proxy{}
	for _, p := range proxies {
		id, err := mesh.ParseID(p.Identity)
		if err != nil || p.State != "connected" || p.LastReport == "" {
			continue
		}
		follows[key(p)] += int(p.Destinations)
		reports[id.Namespace+"/"+p.Workload] = p
	}
	var missing []string
	for _, pod := range pods {
		p, ok := reports[pod]
		if !ok || told != nil && told[key(p)] < follows[key(p)] {
			missing = append(missing, pod)
		}
	}
	return missing
}

// awaitFollowers waits until every proxy has followed the control plane that is
// there now, as look finds, and prints each step. In a large mesh some proxy is
// always about to learn or forget a destination: once seen to follow is enough.
// It returns those that never did when their time is over, of which less is
// granted to those that were lost before.
func awaitFollowers(ctx context.Context, out io.Writer, look func(context.Context) (following, error), within time.Duration, before []string) ([]string, error) {
	began, printed, seen := time.Now(), 0, map[string]bool{}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		f, err := look(ctx)
		switch waited := time.Since(began); {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && (apierrors.IsForbidden(err) || waited >= within):
			return nil, err
		case err == nil:
			f.forget(seen)
			if n := len(f.pods) - len(f.lost); n != printed && (len(f.lost) > 0 || printed > 0) {
				printed = n
				_, _ = fmt.Fprintf(out, "  proxies: %d of %d follow the control plane\n", n, len(f.pods))
			}
			if len(f.lost) == 0 || waited >= within || all(f.lost, before) && waited >= othersWithin {
				return f.lost, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// caughtUp ends a change of the control plane: it waits until the proxies follow
// the new one, so that pods may be replaced from then on.
func (c *cluster) caughtUp(ctx context.Context, out io.Writer, before []string) error {
	missing, err := awaitFollowers(ctx, out, c.followers, followWithin, before)
	if apierrors.IsForbidden(err) { // who installs need not have the right to look
		_, err = fmt.Fprintf(out, "Whether the proxies follow it is not known: %v\n", err)
		return err
	}
	if err != nil {
		return command.WithHint(fmt.Errorf("the mesh is installed, but whether its proxies follow it is not known, so wait a minute before pods are replaced: %w", err),
			"look with: tulle proxies")
	}
	if len(missing) == 0 {
		return nil
	}
	if all(missing, before) {
		_, err := fmt.Fprintf(out, "As before, %s %s\n", blind(missing), lookAt(missing[0]))
		return err
	}
	return command.WithHint(errors.New("the mesh is installed, but "+blind(missing)), lookAt(missing[0]))
}

// beforeRoll looks whether the proxies will hear of pods that are about to be
// replaced, and waits a while for those that will not, but at most half of the
// time that ctx has; without wait it looks once. What it cannot find out holds
// nobody up.
func (c *cluster) beforeRoll(ctx context.Context, out io.Writer, wait bool) {
	within := time.Duration(0)
	if wait {
		within = othersWithin
		if deadline, ok := ctx.Deadline(); ok {
			within = min(within, time.Until(deadline)/2)
		}
	}
	missing, err := awaitFollowers(ctx, out, c.followers, within, nil)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		_, _ = fmt.Fprintf(out, "Whether all proxies will hear of the new pods is not known: %v\n", err)
	case len(missing) > 0:
		_, _ = fmt.Fprintf(out, "Careful: %s %s\n", blind(missing), lookAt(missing[0]))
	}
}

// all tells whether each of pods is among others.
func all(pods, others []string) bool {
	return !slices.ContainsFunc(pods, func(pod string) bool { return !slices.Contains(others, pod) })
}

func blind(pods []string) string {
	named, rest := pods, ""
	if len(pods) > maxNamed {
		named, rest = pods[:maxNamed], fmt.Sprintf(" and %d more", len(pods)-maxNamed)
	}
	return fmt.Sprintf("the proxies of these pods do not follow the control plane, and will not hear of pods that are replaced: %s%s;", strings.Join(named, ", "), rest)
}

func lookAt(pod string) string {
	namespace, name, _ := strings.Cut(pod, "/")
	return fmt.Sprintf("see why with: kubectl -n %s logs %s -c %s; new pods will: tulle mesh --all-workloads-of %s", namespace, name, names.ProxyContainer, namespace)
}

// view is one of the control plane's, and where to put it.
type view struct {
	name   string
	answer any
}

// errNoView is the error where a control plane does not have a view.
var errNoView = errors.New("the control plane has no such view")

// ask reads views of one replica of the control plane.
func (c *cluster) ask(ctx context.Context, replica *corev1.Pod, views ...view) error {
	t, err := c.tunnelTo(ctx, replica)
	if err != nil {
		return err
	}
	defer t.close()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go t.carry(far)
			return near, nil
		},
	}}
	for _, v := range views {
		if err := read(ctx, client, v); err != nil {
			return fmt.Errorf("ask pod %s for %s: %w", replica.Name, v.name, err)
		}
	}
	return nil
}

func read(ctx context.Context, client *http.Client, v view) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/api/v1/"+v.name, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return json.NewDecoder(response.Body).Decode(v.answer)
	case http.StatusNotFound:
		return errNoView
	}
	return errors.New(response.Status)
}
