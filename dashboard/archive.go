package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// archive is a Prometheus server that scrapes the proxies: it knows more than
// the last hour, of buckets that are coarser than our own.
type archive struct {
	address string
	client  *http.Client
	now     func() time.Time
}

const (
	archiveTimeout = 10 * time.Second
	maxArchive     = 16 << 20 // bytes of an answer
	// rateWindow is what rates are taken over: room for two scrapes at the
	// usual 15 s and 30 s.
	rateWindow = "1m"
)

// CheckPrometheus reports why an address is none of a Prometheus server.
func CheckPrometheus(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%s: must be a URL such as http://127.0.0.1:9090", cut(address, maxName))
	}
	return nil
}

func newArchive(address string) *archive {
	return &archive{
		address: strings.TrimSuffix(address, "/"), now: time.Now,
		client: &http.Client{
			Timeout:       archiveTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// selectors are the label matchers of a subject: what its clients' proxies
// count, and what its own proxies count of callers that have none.
func (s subject) selectors() []string {
	q := func(name, value string) string {
		return name + "=" + strconv.Quote(strings.ToValidUTF8(value, "\uFFFD"))
	}
	const outbound, stranger = `direction="outbound"`, `direction="inbound",peer_identity=""`
	switch {
	case s.replica != "":
		return []string{
			outbound + "," + q("service", s.service) + "," + q("peer_workload", s.replica),
			stranger + "," + q("service", s.service) + "," + q("workload", s.replica),
		}
	case s.service != "":
		return []string{outbound + "," + q("service", s.service), stranger + "," + q("service", s.service)}
	}
	return []string{
		outbound + "," + q("workload_service", s.source) + "," + q("service", s.destination),
		stranger + "," + q("peer_address", s.source) + "," + q("service", s.destination),
	}
}

// over writes a function of a metric over a time, for all selectors together.
func (s subject) over(function, metric, more, window string) string {
	var parts []string
	for _, selector := range s.selectors() {
		parts = append(parts, fmt.Sprintf("%s(%s{%s%s}[%s])", function, metric, selector, more, window))
	}
	return strings.Join(parts, " or ")
}

// grid is the times at which the server is asked.
type grid struct {
	first, step int64 // Unix seconds
	n           int
}

// gridOf has at most 60 steps of at least the usual time between scrapes.
func (a *archive) gridOf(window Window) grid {
	length := int64(time.Duration(window) / time.Second)
	step := max(15, (length/60+14)/15*15)
	n := max(length/step, 1)
	return grid{first: a.now().Unix()/step*step - (n-1)*step, step: step, n: int(n)}
}

func (g grid) times() []int64 {
	times := make([]int64, g.n)
	for i := range times {
		times[i] = g.first + int64(i)*g.step
	}
	return times
}

func (a *archive) series(ctx context.Context, of subject, window Window) (Series, error) {
	g := a.gridOf(window)
	s := Series{Now: a.now().UTC(), Range: window.String(), From: fromPrometheus, Step: float64(g.step), Times: g.times()}
	total := "sum(" + of.over("rate", "tulle_requests_total", "", rateWindow) + ")"
	failed := "sum(" + of.over("rate", "tulle_requests_total", `,outcome!="success"`, rateWindow) + ")"
	buckets := "sum by (le) (" + of.over("rate", "tulle_duration_seconds_bucket", "", rateWindow) + ")"
	for _, line := range []struct {
		into  *Points
		query string
	}{
		{&s.RPS, total},
		{&s.Success, fmt.Sprintf("1 - (%s or vector(0)) / (%s > 0)", failed, total)},
		{&s.P50, "histogram_quantile(0.5, " + buckets + ")"},
		{&s.P95, "histogram_quantile(0.95, " + buckets + ")"},
		{&s.P99, "histogram_quantile(0.99, " + buckets + ")"},
	} {
		lines, err := a.query(ctx, line.query, g)
		if err != nil {
			return s, err
		}
		*line.into = nothing(g.n)
		if len(lines) > 0 {
			*line.into = lines[0].points
		}
	}
	return s, nil
}

func nothing(n int) Points {
	points := make(Points, n)
	for i := range points {
		points[i] = math.NaN()
	}
	return points
}

func (a *archive) heatmap(ctx context.Context, of subject, window Window) (Heatmap, error) {
	g := a.gridOf(window)
	h := Heatmap{Now: a.now().UTC(), Range: window.String(), From: fromPrometheus, Step: float64(g.step), Times: g.times(), Bounds: []float64{}, Counts: make([][]uint64, g.n)}
	query := fmt.Sprintf("%d * sum by (le) (%s)", g.step, of.over("rate", "tulle_duration_seconds_bucket", "", rateWindow))
	lines, err := a.query(ctx, query, g)
	if err != nil || len(lines) == 0 {
		return h, err
	}
	slices.SortFunc(lines, func(x, y archiveLine) int {
		if x.le < y.le {
			return -1
		}
		return 1
	})
	for _, line := range lines {
		if len(h.Bounds) == 0 {
			h.Bounds = append(h.Bounds, line.le/2)
		}
		h.Bounds = append(h.Bounds, line.le)
	}
	if last := len(h.Bounds) - 1; math.IsInf(h.Bounds[last], 1) {
		h.Bounds[last] = 2 * h.Bounds[last-1]
	}
	for i := range h.Counts {
		if math.IsNaN(lines[0].points[i]) {
			continue
		}
		h.Counts[i] = make([]uint64, len(lines))
		below := 0.0
		for row, line := range lines { // the server's buckets count all that is faster, too
			if n := line.points[i]; n > below {
				h.Counts[i][row] = uint64(n - below + 0.5)
				below = n
			}
		}
	}
	return h, nil
}

// archiveLine is one line of an answer; le is its label of that name.
type archiveLine struct {
	le     float64
	points Points
}

// query asks for a range (the HTTP API's query_range).
func (a *archive) query(ctx context.Context, query string, g grid) ([]archiveLine, error) {
	values := url.Values{
		"query": {query}, "step": {strconv.FormatInt(g.step, 10)},
		"start": {strconv.FormatInt(g.first, 10)}, "end": {strconv.FormatInt(g.first+int64(g.n-1)*g.step, 10)},
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.address+"/api/v1/query_range?"+values.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := a.client.Do(r)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // without the whole query
		}
		return nil, fmt.Errorf("ask Prometheus at %s: %w", r.URL.Host, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxArchive))
	if err != nil {
		return nil, fmt.Errorf("ask Prometheus at %s: %w", r.URL.Host, err)
	}
	lines, err := readMatrix(body, g)
	if err != nil {
		return nil, fmt.Errorf("ask Prometheus at %s: it answered %s: %w", r.URL.Host, response.Status, err)
	}
	return lines, nil
}

// readMatrix puts an answer on the grid. It may come from any server.
func readMatrix(body []byte, g grid) ([]archiveLine, error) {
	var answer struct {
		Status, Error string
		Data          struct {
			ResultType string
			Result     []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, errors.New("that is not the answer of a Prometheus server")
	}
	if answer.Status != "success" || answer.Data.ResultType != "matrix" {
		return nil, fmt.Errorf("%s", cut(answer.Error+" "+answer.Data.ResultType, maxName))
	}
	var lines []archiveLine
	for _, result := range answer.Data.Result {
		line := archiveLine{points: nothing(g.n)}
		line.le, _ = strconv.ParseFloat(result.Metric["le"], 64)
		for _, v := range result.Values {
			at, _ := v[0].(float64)
			text, _ := v[1].(string)
			n, err := strconv.ParseFloat(text, 64)
			if i := (at - float64(g.first)) / float64(g.step); err == nil && i >= 0 && i < float64(g.n) && !math.IsInf(n, 0) && n >= 0 {
				line.points[int(i)] = n
			}
		}
		lines = append(lines, line)
	}
	return lines, nil
}
