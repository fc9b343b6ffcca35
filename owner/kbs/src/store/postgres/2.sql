-- What administrators do is noted, too.
INSERT INTO sealpod.audit_class VALUES ('administrator', 0);
