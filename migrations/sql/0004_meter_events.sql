-- An event somebody got wrong is withdrawn with a reason; figures as they were known before keep it.
ALTER TABLE ecmc.meter_event ADD COLUMN withdrawn_by text;
ALTER TABLE ecmc.meter_event ADD COLUMN withdrawn_at timestamptz;
ALTER TABLE ecmc.meter_event ADD COLUMN withdrawn_why text;
