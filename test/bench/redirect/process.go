package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// process is one end, or a proxy. It is told what to do, and answers, line by line.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// begin returns once the command has said its first line.
func begin(cmd *exec.Cmd) (*process, error) {
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd, in, bufio.NewReader(out)}
	if _, err := p.out.ReadString('\n'); err != nil {
		p.end()
		return nil, fmt.Errorf("%q did not start: %w", cmd.Args, err)
	}
	return p, nil
}

// start starts one of this program's parts in a namespace, on a processor, as a user.
func start(ns *os.File, cpu, uid int, args ...string) (p *process, err error) {
	cmd := exec.Command("/proc/self/exe", append([]string{args[0], strconv.Itoa(cpu)}, args[1:]...)...)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	err = in(ns, func() (err error) {
		p, err = begin(cmd)
		return err
	})
	return p, err
}

// ask tells the process to do something, and waits until it is done.
func (p *process) ask(what string, answer any) error {
	if _, err := fmt.Fprintln(p.in, what); err != nil {
		return err
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return json.Unmarshal(line, answer)
}

// do is ask for a client.
func (p *process) do(what string, count int) (s seen, err error) {
	err = p.ask(fmt.Sprint(what, " ", count), &s)
	return s, err
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) end() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// cpu returns the seconds that processes have run.
func cpu(pids []int) (float64, error) {
	seconds := 0.0
	for _, pid := range pids {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return 0, err
		}
		for _, task := range tasks {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
			nanos, _, _ := strings.Cut(string(text), " ")
			ran, _ := strconv.ParseFloat(nanos, 64) // a thread that has just ended
			seconds += ran / 1e9
		}
	}
	return seconds, nil
}
