package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// redis is a client with a pool of connections; many goroutines may use it.
type redis struct {
	addr string
	idle chan *redisConn
}

type redisConn struct {
	net.Conn
	reader *bufio.Reader
	used   int // commands sent
}

// commandsPerConn bounds a connection's life, as many pools do, so that a Redis
// that moved is found again.
const commandsPerConn = 60

func newRedis(addr string) *redis { return &redis{addr: addr, idle: make(chan *redisConn, 32)} }

// increment adds one to a counter and returns its new value.
func (r *redis) increment(ctx context.Context, key string) (int, error) {
	conn, err := r.take(ctx)
	if err != nil {
		return 0, err
	}
	value, err := conn.increment(key)
	if err != nil {
		conn.Close()
		return 0, fmt.Errorf("redis: %w", err)
	}
	r.giveBack(conn)
	return value, nil
}

func (r *redis) take(ctx context.Context) (*redisConn, error) {
	select {
	case conn := <-r.idle:
		return conn, nil
	default:
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", r.addr)
	if err != nil {
		return nil, err
	}
	return &redisConn{Conn: conn, reader: bufio.NewReader(conn)}, nil
}

func (r *redis) giveBack(conn *redisConn) {
	if conn.used >= commandsPerConn {
		conn.Close()
		return
	}
	select {
	case r.idle <- conn:
	default:
		conn.Close()
	}
}

func (r *redis) close() {
	for {
		select {
		case conn := <-r.idle:
			conn.Close()
		default:
			return
		}
	}
}

func (c *redisConn) increment(key string) (int, error) {
	c.used++
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(c, "*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n", len(key), key); err != nil {
		return 0, err
	}
	line, err := c.reader.ReadString('\n')
	if err != nil {
		return 0, err
	}
	number, ok := strings.CutPrefix(strings.TrimSuffix(line, "\r\n"), ":")
	if !ok {
		return 0, fmt.Errorf("answered %q", line)
	}
	return strconv.Atoi(number)
}
