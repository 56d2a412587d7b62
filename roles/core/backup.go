package core

import "context"

func (c *core) backups(ctx context.Context) error { return nil }
