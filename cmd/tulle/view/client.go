package view

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/cmd/tulle/host"
)

const (
	answerTimeout = 10 * time.Second
	maxAnswer     = 64 << 20
	maxEvent      = 1 << 20
)

// client asks the control plane that runs in a directory.
type client struct {
	run     string
	cluster string // of Kubernetes, to which the directory's socket leads; "": none
	http    *http.Client
}

func newClient(env *command.Env, run string) *client {
	socket := filepath.Join(run, "api.sock")
	return &client{run: run, cluster: env.Cluster, http: &http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// close lets go of idle connections.
func (c *client) close() { c.http.CloseIdleConnections() }

// get reads a view into the answer.
func (c *client) get(ctx context.Context, view string, query url.Values, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	body, err := c.open(ctx, view, query)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("read %s: %w", view, err)
	}
	return nil
}

// events calls take with the data of each server-sent event until ctx ends,
// take fails, or the stream does.
func (c *client) events(ctx context.Context, view string, query url.Values, take func([]byte) error) error {
	body, err := c.open(ctx, view, query)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if err := take([]byte(data)); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return command.WithHint(errors.New("the control plane has ended"), c.again())
}

func (c *client) open(ctx context.Context, view string, query url.Values) (io.ReadCloser, error) {
	target := url.URL{Scheme: "http", Host: "localhost", Path: "/api/v1/" + view, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer func() { _ = response.Body.Close() }()
	var answer struct{ Error string }
	if json.NewDecoder(io.LimitReader(response.Body, maxEvent)).Decode(&answer) != nil || answer.Error == "" {
		answer.Error = "the control plane answered " + response.Status
	}
	return nil, errors.New(printable(answer.Error))
}

// explain says what to type when nobody answers at the socket.
func (c *client) explain(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		if err := host.ErrStray(c.run); err != nil {
			return err
		}
		return command.WithHint(errors.New("the control plane is not running"), "start it with: "+c.upCommand())
	case errors.Is(err, fs.ErrPermission):
		return command.WithHint(errors.New("only root may ask the control plane"), "type the same with sudo")
	}
	return fmt.Errorf("ask the control plane: %w", err)
}

// again is what to type where the control plane was there, and is not any more.
func (c *client) again() string {
	if c.cluster != "" {
		return "type the same again, or see why with: tulle check"
	}
	return "start it with: " + c.upCommand()
}

func (c *client) upCommand() string {
	if c.run != command.DefaultRun {
		return "sudo tulle up --run " + c.run
	}
	return "sudo tulle up"
}
