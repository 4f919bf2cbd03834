package proxy

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tulle-mesh/tulle/mesh"
)

// collector makes Prometheus metrics from the counters at scrape time; between
// scrapes they cost the data path plain atomic adds.
type collector struct{ proxy *Proxy }

var edgeLabels = []string{"direction", "service", "peer_identity", "peer_workload", "peer_address", "security", "protocol"}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tulle_"+name, help, append(append([]string{}, edgeLabels...), labels...), nil)
}

var (
	requestsDesc   = desc("requests_total", "Requests (HTTP) or connections (other protocols) that ended, by outcome.", "outcome")
	statusesDesc   = desc("responses_total", "HTTP answers by status.", "status")
	durationDesc   = desc("duration_seconds", "HTTP: from the first byte of the request to the last byte of the answer. Other protocols: time to connect.")
	openDesc       = desc("open_connections", "Connections of opaque protocols that are open.")
	sentDesc       = desc("sent_bytes_total", "Bytes towards the server.")
	receivedDesc   = desc("received_bytes_total", "Bytes from the server.")
	certEndDesc    = prometheus.NewDesc("tulle_certificate_not_after_seconds", "When the certificate ends, in seconds since 1970.", nil, nil)
	acceptedDesc   = prometheus.NewDesc("tulle_accepted_connections", "Accepted connections that are open.", nil, nil)
	watchedDesc    = prometheus.NewDesc("tulle_watched_destinations", "Addresses that discovery is asked about.", nil, nil)
	edgeDescs      = []*prometheus.Desc{requestsDesc, statusesDesc, durationDesc, openDesc, sentDesc, receivedDesc}
	proxyDescs     = []*prometheus.Desc{certEndDesc, acceptedDesc, watchedDesc}
	durationBounds = []time.Duration{
		100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
		1 * time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
		50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		1 * time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
	}
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range append(append([]*prometheus.Desc{}, edgeDescs...), proxyDescs...) {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, e := range c.proxy.recorder.all() {
		collectEdge(e, out)
	}
	if end := c.proxy.notAfter(); !end.IsZero() {
		gauge(certEndDesc, float64(end.Unix()))
	}
	gauge(acceptedDesc, float64(c.proxy.conns.len()))
	gauge(watchedDesc, float64(len(c.proxy.directory.all())))
}

func collectEdge(e *edge, out chan<- prometheus.Metric) {
	k := e.key
	labels := []string{k.direction.String(), k.service, k.peer.String(), k.workload, k.address, k.security.String(), k.protocol.String()}
	counter := func(d *prometheus.Desc, v uint64, more ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append(labels[:len(labels):len(labels)], more...)...)
	}
	for i := range e.outcomes {
		if n := e.outcomes[i].Load(); n > 0 {
			counter(requestsDesc, n, mesh.Outcome(i).String())
		}
	}
	e.eachStatus(func(code int, n uint64) { counter(statusesDesc, n, strconv.Itoa(code)) })
	counter(sentDesc, e.sent.Load())
	counter(receivedDesc, e.received.Load())
	out <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(e.open.Load()), labels...)
	var counts [mesh.Buckets]uint64
	sum := e.latency.Snapshot(&counts)
	total, buckets := cumulate(&counts)
	out <- prometheus.MustNewConstHistogram(durationDesc, total, sum.Seconds(), buckets, labels...)
}

// cumulate folds the fine buckets into Prometheus' cumulative ones. A fine
// bucket that straddles a bound counts above it.
func cumulate(counts *[mesh.Buckets]uint64) (total uint64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, len(durationBounds))
	next := 0
	for i, n := range counts {
		_, high := mesh.BucketBounds(i)
		for next < len(durationBounds) && high > durationBounds[next] {
			buckets[durationBounds[next].Seconds()] = total
			next++
		}
		total += n
	}
	for ; next < len(durationBounds); next++ {
		buckets[durationBounds[next].Seconds()] = total
	}
	return total, buckets
}
