package firewall

import (
	"testing"

	"sallyport/configs"
	"sallyport/firewall/netns"
)

// tenThousand are mixed peers of which 10,000 are left when merged.
func tenThousand(b testing.TB) Peers {
	p := mixedPeers(b, mixed(b, 14000, 3))
	p.prefixes = p.prefixes[len(p.prefixes)/2-5000:][:10000] // some of each family
	return p
}

// BenchmarkRender10000 makes text of 10,000 mixed peers, from the data file on.
func BenchmarkRender10000(b *testing.B) {
	text, err := Data{Core: &Entry{1, tenThousand(b)}}.Encode()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		d, err := ParseData(text)
		if err != nil {
			b.Fatal(err)
		}
		render(b, rules(b, configs.RoleCore, *d.Core, 50055))
	}
}

// BenchmarkLoad10000 checks and loads them into a kernel that has others.
func BenchmarkLoad10000(b *testing.B) {
	netns.Available(b, "nft")
	host := Host{NFT: nftOn(netns.New(b, "bench")), Dir: b.TempDir()}
	r := rules(b, configs.RoleCore, Entry{1, tenThousand(b)}, 50055)
	for b.Loop() {
		if err := host.Apply(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompare10000 compares them with what the kernel has.
func BenchmarkCompare10000(b *testing.B) {
	netns.Available(b, "nft")
	host := Host{NFT: nftOn(netns.New(b, "bench")), Dir: b.TempDir()}
	r := rules(b, configs.RoleCore, Entry{1, tenThousand(b)}, 50055)
	if err := host.Apply(b.Context(), r); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		k, err := host.NFT.Kernel(b.Context(), r.Role())
		if err != nil {
			b.Fatal(err)
		}
		if drift := r.Drift(k); len(drift) > 0 {
			b.Fatal(drift)
		}
	}
}

// TestTenThousandPeers are loaded as they were meant.
func TestTenThousandPeers(t *testing.T) {
	t.Parallel()
	netns.Available(t, "nft")
	load(t, netns.New(t, "many"), rules(t, configs.RoleCore, Entry{1, tenThousand(t)}, 50055))
}
