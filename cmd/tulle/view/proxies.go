package view

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/tulle-mesh/tulle/cmd/tulle/command"
	"github.com/tulle-mesh/tulle/dashboard"
)

func proxies(ctx context.Context, env *command.Env, args []string) int {
	o := newOptions("proxies [NAME] [flags]", "Shows the proxy beside each workload: its memory, its connections and when its certificate expires.", false)
	return o.view(ctx, env, args, func(c *client, w io.Writer, name string) error {
		var answer dashboard.Answer[dashboard.Proxy]
		if err := c.get(ctx, "proxies", o.query(name), &answer); err != nil {
			return err
		}
		if o.json() {
			return writeJSON(w, answer)
		}
		if len(answer.Items) == 0 {
			_, err := fmt.Fprintln(w, "No proxy has reported yet; "+begin(env, "start a workload: "+aWorkload))
			return err
		}
		return writeProxies(w, answer.Items, answer.Now, o.wide(), colours(env))
	})
}

func writeProxies(w io.Writer, proxies []dashboard.Proxy, now time.Time, wide, colours bool) error {
	head := []string{"WORKLOAD", "STATE", "MEMORY", "CONNECTIONS", "CERTIFICATE", "RENEWED", "REDIRECT", "VERSION"}
	if wide {
		head = append(head, "STARTED", "REPORTED", "DESTINATIONS", "ADDRESS", "IDENTITY")
	}
	t := newTable(head...)
	for _, p := range proxies {
		state := word(p.State, warning)
		switch p.State {
		case "connected":
			state.tone = good
		case "ended":
			state.tone = faint
		}
		expires, tone := until(p.CertExpires, now)
		row := []cell{word(p.Workload, strong), state, number(size(p.RSS)), number(strconv.Itoa(int(p.Connections))), number(expires, tone),
			number(strconv.Itoa(p.Renewals)), word(p.Redirect), word(p.Version)}
		if wide {
			row = append(row, number(ago(p.Started, now)), number(ago(p.LastReport, now)), number(strconv.Itoa(int(p.Destinations))), word(p.Address), word(p.Identity))
		}
		t.add(row...)
	}
	return t.write(w, colours)
}

func identity(ctx context.Context, env *command.Env, args []string) int {
	o := newOptions("identity [NAME] [flags]", "Shows the identity of a service or replica, and the certificates that prove it. Without a NAME: all identities.", false)
	return o.view(ctx, env, args, func(c *client, w io.Writer, name string) error {
		var answer dashboard.Identities
		if err := c.get(ctx, "identities", o.query(name), &answer); err != nil {
			return err
		}
		if o.json() {
			return writeJSON(w, answer)
		}
		if name == "" {
			return writeIdentities(env, w, answer.Items, answer.Now)
		}
		if len(answer.Items) == 0 {
			return command.WithHint(fmt.Errorf("nobody holds an identity called %s", printable(name)), "see all of them with: tulle identity")
		}
		for _, identity := range answer.Items {
			if err := writeIdentity(w, identity, answer.Roots, answer.Now, colours(env)); err != nil {
				return err
			}
		}
		return nil
	})
}

func writeIdentities(env *command.Env, w io.Writer, identities []dashboard.Identity, now time.Time) error {
	if len(identities) == 0 {
		_, err := fmt.Fprintln(w, "Nobody holds an identity yet; "+begin(env, "start a workload: "+aWorkload))
		return err
	}
	t := newTable("NAME", "HOLDERS", "NEXT-EXPIRY", "IDENTITY")
	for _, i := range identities {
		soonest := ""
		for _, h := range i.Holders {
			if h.Expires != "" && h.State == "connected" && (soonest == "" || h.Expires < soonest) {
				soonest = h.Expires
			}
		}
		left, tone := until(soonest, now)
		t.add(word(i.Name, strong), number(strconv.Itoa(len(i.Holders))), number(left, tone), word(i.Identity))
	}
	return t.write(w, colours(env))
}

func writeIdentity(w io.Writer, identity dashboard.Identity, roots []dashboard.Root, now time.Time, colours bool) error {
	f := &facts{w: w, colours: colours}
	f.add(0, "Identity", identity.Identity, strong)
	for _, h := range identity.Holders {
		f.add(0, "Holder", h.Workload+" at "+h.Address+", "+h.State)
		left, tone := until(h.Expires, now)
		if left != "" && left != "expired" {
			left = "in " + left + ", at " + h.Expires
		}
		f.add(2, "Expires", left, tone)
		if h.Issued != "" {
			f.add(2, "Issued", h.Issued)
			f.add(2, "Serial", h.Serial)
		}
		f.add(2, "Issuer", h.Issuer)
		f.add(2, "Renewals", strconv.Itoa(h.Renewals))
	}
	for _, r := range roots {
		f.add(0, "Root", r.Subject)
		f.add(2, "Expires", r.Expires)
		f.add(2, "SHA-256", r.SHA256)
	}
	return f.err
}

func openDashboard(ctx context.Context, env *command.Env, args []string) int {
	flags := command.NewFlags("dashboard [flags]", "Prints the address of the dashboard, and opens it if there is a desktop.")
	run := flags.RunDir()
	if operands, err := flags.Parse(env, args); err != nil || len(operands) > 0 {
		if err == nil {
			err = command.Usagef("dashboard takes no name; got %q", operands)
		}
		return finish(ctx, env, err)
	}
	c := newClient(env, *run)
	defer c.close()
	var about dashboard.About
	if err := c.get(ctx, "about", nil, &about); err != nil {
		return finish(ctx, env, err)
	}
	if about.URL == "" {
		return env.Fail(command.WithHint(fmt.Errorf("the dashboard is switched off"), "start the control plane with: "+c.upCommand()+" --dashboard 127.0.0.1:4180"))
	}
	_, _ = fmt.Fprintln(env.Stdout, printable(about.URL))
	if hasDesktop(env) {
		// The address is printed already; a desktop without a browser is no error.
		_ = exec.CommandContext(ctx, "xdg-open", about.URL).Run()
	}
	return command.OK
}

// hasDesktop tells whether a browser can be opened for the user who looks. Not
// under sudo: a browser must not run as root.
func hasDesktop(env *command.Env) bool {
	display := slices.ContainsFunc([]string{"DISPLAY", "WAYLAND_DISPLAY"}, func(k string) bool { return env.Getenv(k) != "" })
	return display && isTerminal(env.Stdout) && env.Getenv("SUDO_USER") == "" && env.Getenv("USER") != "root"
}
