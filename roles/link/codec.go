package link

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that is wrapped here
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxFields bounds how many fields one message may have, those of its
// submessages included. An empty submessage takes two bytes on the wire and a
// hundred in memory: 16 MiB of them would be a gigabyte.
const maxFields = 200_000

// boundedCodec is gRPC's protobuf codec, which counts fields before it builds
// anything of them.
type boundedCodec struct{ encoding.CodecV2 }

var codec = boundedCodec{encoding.GetCodecV2("proto")}

func (c boundedCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("a %T is no message", v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	left := maxFields
	if err := checkShape(buf.ReadOnlyData(), m.ProtoReflect().Descriptor(), &left); err != nil {
		return err
	}
	return proto.Unmarshal(buf.ReadOnlyData(), m)
}

// checkShape walks a message and counts its fields down in left. Our messages
// are not recursive and have neither groups nor maps, so its depth is bounded
// by the descriptor; elements of packed numbers cost what they take.
func checkShape(b []byte, d protoreflect.MessageDescriptor, left *int) error {
	for len(b) > 0 {
		if *left--; *left < 0 {
			return fmt.Errorf("the message has more than %d fields", maxFields)
		}
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if f := d.Fields().ByNumber(num); f != nil && f.Kind() == protoreflect.MessageKind {
			if err := checkShape(value, f.Message(), left); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendable reports why a frame cannot carry m. What cannot be sent would end
// the session, and the next one, without end.
func sendable(m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > maxPayload {
		return fmt.Errorf("it takes %d bytes, %d are possible", len(b), maxPayload)
	}
	left := maxFields - 16
	return checkShape(b, m.ProtoReflect().Descriptor(), &left)
}
