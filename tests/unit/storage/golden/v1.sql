-- A database of schema 1 with something in each table. Never edit: test_migrations.py opens it.
PRAGMA application_id = 1667460978;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE event (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL,
            kind TEXT NOT NULL,
            project_id INTEGER REFERENCES project (id) ON DELETE SET NULL,
            instance_id INTEGER REFERENCES instance (id) ON DELETE SET NULL,
            project TEXT NOT NULL,
            instance TEXT NOT NULL,
            actor TEXT NOT NULL,
            priority INTEGER NOT NULL,
            message TEXT NOT NULL,
            data TEXT NOT NULL,
            uid TEXT UNIQUE
        );
INSERT INTO "event" VALUES(1,1700000050.0,'audit.CreateInstance',2,1,'web-shop','fix-login','uid 1000',5,'created fix-login','{}',NULL);
INSERT INTO "event" VALUES(2,1700000090.0,'tool',2,1,'web-shop','fix-login','hook',6,'Bash: ls (0.2 s, ok)','{"command":"ls","seconds":0.25}','4f1c');
INSERT INTO "event" VALUES(3,1700000095.0,'removed',2,NULL,'web-shop','gone','ccorchd',6,'gone was removed','{}',NULL);
CREATE TABLE instance (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            project_id INTEGER NOT NULL REFERENCES project (id) ON DELETE RESTRICT,
            name TEXT NOT NULL,
            agent TEXT NOT NULL,
            session_id TEXT NOT NULL,
            branch TEXT NOT NULL,
            base TEXT NOT NULL,
            base_commit TEXT NOT NULL,
            worktree TEXT NOT NULL,
            port INTEGER NOT NULL,
            prompt TEXT NOT NULL,
            limits TEXT NOT NULL,
            environment TEXT NOT NULL,
            options TEXT NOT NULL,
            wanted INTEGER NOT NULL,
            state TEXT NOT NULL,
            reason TEXT NOT NULL,
            reason_text TEXT NOT NULL,
            since REAL NOT NULL,
            created REAL NOT NULL,
            restarts INTEGER NOT NULL,
            pid INTEGER NOT NULL,
            boot_id TEXT NOT NULL,
            started INTEGER NOT NULL,
            doing TEXT NOT NULL,
            UNIQUE (project_id, name)
        );
INSERT INTO "instance" VALUES(1,2,'fix-login','claude','0b0e7b9e-3d4c-4ba3-a8a7-0d1f6a1f5a11','ccorch/fix-login','main','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','/home/u/.local/share/ccorch/web-shop/fix-login',42000,'Fix the "login"
please 😀','{"cpu_quota_percent":150.5,"cpu_weight":50,"memory_high":900,"memory_max":1000,"tasks_max":null}','{"LANG":"de_DE.UTF-8","PATH":"/usr/bin:/bin"}','{"model":"x"}',1,'waiting','permission','Bash: rm -rf build',1700000100.25,1700000050.0,2,4242,'6d9ba0d4-98dd-4f5a-b2ce-0ad6e2ae1b39',1,'Bash: rm -rf build');
INSERT INTO "instance" VALUES(2,2,'old','demo','','ccorch/old','main','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','/home/u/.local/share/ccorch/web-shop/old',0,'','{"cpu_quota_percent":null,"cpu_weight":100,"memory_high":null,"memory_max":null,"tasks_max":1024}','{}','{}',0,'failed','out-of-memory','MemoryMax reached',1700000060.0,1700000051.0,0,0,'',0,'');
INSERT INTO "instance" VALUES(3,1,'old','command','','ccorch/old','main','cccccccccccccccccccccccccccccccccccccccc','/w',0,'','{"cpu_quota_percent":null,"cpu_weight":100,"memory_high":null,"memory_max":null,"tasks_max":1024}','{}','{"command":"make check"}',0,'stopped','','',1700000060.0,1700000051.0,0,0,'',0,'');
CREATE TABLE project (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            repository TEXT NOT NULL UNIQUE,
            created REAL NOT NULL,
            agreed_hash TEXT NOT NULL
        );
INSERT INTO "project" VALUES(1,'api','/home/u/api',1700000000.5,'');
INSERT INTO "project" VALUES(2,'web-shop','/home/u/web shop',1700000000.5,'5555555555555555555555555555555555555555555555555555555555555555');
CREATE UNIQUE INDEX instance_port ON instance (port) WHERE port > 0;
CREATE INDEX event_instance ON event (instance_id, id);
CREATE INDEX event_project ON event (project_id, id);
CREATE INDEX event_name ON event (project, instance, id);
CREATE INDEX event_kind ON event (kind, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('project',3);
INSERT INTO "sqlite_sequence" VALUES('instance',4);
INSERT INTO "sqlite_sequence" VALUES('event',3);
COMMIT;
