package redirect

import (
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file in testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	path := filepath.Join("testdata", file+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; to make it, type: go test ./cni/redirect -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); if that is right, type: go test ./cni/redirect -update\n%s", path, diff)
	}
}

var goldenRules = map[string]Rules{"default": {}, "everything": everything}

func TestRestoreInputIsGolden(t *testing.T) {
	for name, rules := range goldenRules {
		chains := rules.withDefaults().chains()
		golden(t, name+".iptables-restore", transition(nil, render(chains, false)))
		golden(t, name+".ip6tables-restore", transition(nil, render(chains, true)))
	}
	first, second := render(Rules{}.withDefaults().chains(), false), render(everything.withDefaults().chains(), false)
	golden(t, "replace.iptables-restore", transition(first, second))
	golden(t, "remove.iptables-restore", transition(first, nil))
}

func TestNFTablesExpressionsAreGolden(t *testing.T) {
	for name, rules := range goldenRules {
		var b strings.Builder
		for i, c := range rules.withDefaults().chains() {
			if i > 0 {
				b.WriteString("\n")
			}
			hook, priority := nftHook(c)
			fmt.Fprintf(&b, "chain inet tulle %s type %s hook %d priority %d\n", c.name, c.table, *hook, priority)
			for _, r := range c.rules {
				fmt.Fprintf(&b, "# %s\n%s", r.why, formatExprs(append(nftMatch(r, c.hook), nftVerdict(r)...)))
			}
		}
		golden(t, name+".nftables", b.String())
	}
}

// formatExprs writes expressions in the manner of nft --debug=netlink.
func formatExprs(exprs []expr.Any) string {
	var b strings.Builder
	for _, e := range exprs {
		b.WriteString("  [ " + formatExpr(e) + " ]\n")
	}
	return b.String()
}

var (
	metaNames    = map[expr.MetaKey]string{expr.MetaKeyL4PROTO: "l4proto", expr.MetaKeySKUID: "skuid", expr.MetaKeyOIF: "oif", expr.MetaKeyIIF: "iif", expr.MetaKeyNFPROTO: "nfproto"}
	baseNames    = map[expr.PayloadBase]string{expr.PayloadBaseNetworkHeader: "network", expr.PayloadBaseTransportHeader: "transport"}
	opNames      = map[expr.CmpOp]string{expr.CmpOpEq: "eq", expr.CmpOpNeq: "neq"}
	verdictNames = map[expr.VerdictKind]string{expr.VerdictReturn: "return", expr.VerdictDrop: "drop"}
)

func formatExpr(e expr.Any) string {
	switch e := e.(type) {
	case *expr.Meta:
		return fmt.Sprintf("meta load %s => reg %d", metaNames[e.Key], e.Register)
	case *expr.Ct:
		return fmt.Sprintf("ct load %d => reg %d", e.Key, e.Register)
	case *expr.Payload:
		return fmt.Sprintf("payload load %db @ %s header + %d => reg %d", e.Len, baseNames[e.Base], e.Offset, e.DestRegister)
	case *expr.Bitwise:
		return fmt.Sprintf("bitwise reg %d = ( reg %d & 0x%s ) ^ 0x%s", e.DestRegister, e.SourceRegister, hex.EncodeToString(e.Mask), hex.EncodeToString(e.Xor))
	case *expr.Cmp:
		return fmt.Sprintf("cmp %s reg %d 0x%s", opNames[e.Op], e.Register, hex.EncodeToString(e.Data))
	case *expr.Immediate:
		return fmt.Sprintf("immediate reg %d 0x%s", e.Register, hex.EncodeToString(e.Data))
	case *expr.Redir:
		return fmt.Sprintf("redir proto_min reg %d", e.RegisterProtoMin)
	case *expr.Verdict:
		return "immediate reg 0 " + verdictNames[e.Kind]
	}
	return fmt.Sprintf("%T %+v", e, e)
}

// Golden files that no test writes any more mislead.
func TestGoldenFilesAreInUse(t *testing.T) {
	var want []string
	for _, name := range slices.Sorted(maps.Keys(goldenRules)) {
		want = append(want, name+".iptables-restore.golden", name+".ip6tables-restore.golden", name+".nftables.golden")
	}
	want = append(want, "replace.iptables-restore.golden", "remove.iptables-restore.golden", "revision.golden")
	files, err := filepath.Glob("testdata/*.golden")
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	slices.Sort(want)
	slices.Sort(files)
	if diff := cmp.Diff(want, files); diff != "" {
		t.Errorf("files in testdata (-want +got):\n%s", diff)
	}
}
