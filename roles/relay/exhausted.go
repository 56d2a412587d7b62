package relay

import (
	"encoding/base64"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Exhausted is the answer to who asks too often: RESOURCE_EXHAUSTED, with a
// google.rpc.RetryInfo that says after what time it is worth trying again.
func Exhausted(message, reason string, retry time.Duration) Rejection {
	no := Rejection{Code: codes.ResourceExhausted, Message: message, Reason: reason}
	info, err := anypb.New(&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
	if err != nil {
		return no
	}
	raw, err := proto.Marshal(&spb.Status{Code: int32(no.Code), Message: message, Details: []*anypb.Any{info}})
	if err != nil {
		return no
	}
	no.Extra = []Field{{Name: "grpc-status-details-bin", Value: base64.RawStdEncoding.EncodeToString(raw)}}
	return no
}

// TooLarge is the answer to a call with a message above a cap.
func TooLarge(hop string, size, most uint64, response bool, extra ...Field) Rejection {
	who := "the caller"
	if response {
		who = "the service"
	}
	return Rejection{Code: codes.ResourceExhausted, Reason: "message_size", Extra: extra,
		Message: fmt.Sprintf("%s: %s sends a message of %d bytes, and this method's may have %d", hop, who, size, most)}
}
