-- The role Grafana reads with: SELECT on the schema board and nothing else. Safe to run again; changes the password.
--   psql "$DSN" --set=ON_ERROR_STOP=1 --file=board_role.sql     with ECMC_BOARD_PASSWORD in the environment
\getenv password ECMC_BOARD_PASSWORD
\if :{?password}
\else
    \warn 'ECMC_BOARD_PASSWORD is not set'
    SELECT 1 / 0 AS ecmc_board_password_is_not_set;
\endif
SELECT 'CREATE ROLE grafana' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') \gexec
ALTER ROLE grafana LOGIN PASSWORD :'password' CONNECTION LIMIT 20;
ALTER ROLE grafana SET statement_timeout = '30s';
SELECT ecmc.grant_boards('grafana');
