package ends

import (
	"flag"
	"net"
	"time"
)

// runBulk takes in bytes over some connections, as fast as they come.
func runBulk(args []string) error {
	flags := flag.NewFlagSet("bulk", flag.ContinueOnError)
	connections := flags.Int("connections", 1, "how many")
	long := flags.Duration("long", time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return together(*connections, *long, func(until time.Time, report *Report) error {
		conn, err := net.DialTimeout("tcp", flags.Arg(0), 10*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{wantBulk}); err != nil {
			return err
		}
		buffer := make([]byte, 256<<10)
		for time.Now().Before(until) {
			_ = conn.SetReadDeadline(until.Add(10 * time.Second))
			n, err := conn.Read(buffer)
			if err != nil {
				return err
			}
			report.Bytes += int64(n)
		}
		return nil
	})
}

// runShort makes connections one after the other, some of that at a time: each
// sends 200 bytes, waits for the answer, and is closed.
func runShort(args []string) error {
	flags := flag.NewFlagSet("short", flag.ContinueOnError)
	atOnce := flags.Int("connections", 16, "how many at a time")
	long := flags.Duration("long", time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return together(*atOnce, *long, func(until time.Time, report *Report) error {
		for began := time.Now(); began.Before(until); {
			conn, err := net.DialTimeout("tcp", flags.Arg(0), 10*time.Second)
			if err != nil {
				return err
			}
			_ = conn.SetDeadline(began.Add(10 * time.Second))
			err = useTCP(conn)
			conn.Close()
			if err != nil {
				return err
			}
			now := time.Now()
			report.latencies = append(report.latencies, now.Sub(began))
			began = now
			report.Count++
		}
		return nil
	})
}
