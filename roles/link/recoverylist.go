package link

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// A core that was restored on a fresh host recovers nobody before it has heard
// what every component knows of revocations, and one whose identity has expired
// can be heard nowhere else: so core asks for its list during the recovery, once
// it knows who asks.

// The list is sent in parts, since a stranger may send a frame of this ALPN too.
const (
	listPart = 128 << 10
	listMost = 4 << 20
)

// sendList answers WantRevocations. A component without a list says so with an
// empty one.
func sendList(ctx context.Context, st RecoverStream, list *control.RevocationList) error {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(list)
	if err != nil {
		return err
	}
	for {
		part := body[:min(len(body), listPart)]
		body = body[len(part):]
		frame := &control.JoinFrame{Frame: &control.JoinFrame_Revocations{Revocations: &control.RevocationListPart{Data: part, Last: len(body) == 0}}}
		if err := st.Send(frame); err != nil {
			return recvEnd[control.JoinFrame](ctx, st, err)
		}
		if len(body) == 0 {
			return nil
		}
	}
}

// askList is core's end of sendList.
func askList(ctx context.Context, st RecoverStream) (*control.RevocationList, error) {
	if err := st.Send(&control.JoinFrame{Frame: &control.JoinFrame_WantRevocations{WantRevocations: &control.WantRevocations{}}}); err != nil {
		return nil, recvEnd[control.JoinFrame](ctx, st, err)
	}
	var body []byte
	for {
		f, err := st.Recv()
		if err != nil {
			return nil, endOf(ctx, err)
		}
		if refusal := pki.RefusalFromProto(f.GetRefusal()); refusal != nil {
			return nil, fmt.Errorf("the component refused: %w", refusal)
		}
		part := f.GetRevocations()
		if part == nil || len(part.GetData()) == 0 && !part.GetLast() {
			return nil, refuseProtocol("the component was asked for its revocation list and sent something else")
		}
		if len(body)+len(part.GetData()) > listMost {
			return nil, refuseProtocol("the component's revocation list is too long")
		}
		if body = append(body, part.GetData()...); part.GetLast() {
			list := &control.RevocationList{}
			if err := proto.Unmarshal(body, list); err != nil {
				return nil, refuseProtocol("the component's revocation list cannot be read")
			}
			return list, nil
		}
	}
}
