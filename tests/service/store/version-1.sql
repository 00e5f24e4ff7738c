BEGIN TRANSACTION;
CREATE TABLE blobs (
	session INTEGER NOT NULL, 
	kind VARCHAR(40) NOT NULL, 
	number INTEGER NOT NULL, 
	part INTEGER NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (session, kind, number, part), 
	FOREIGN KEY(session) REFERENCES sessions ("key") ON DELETE CASCADE
);
CREATE TABLE curation_schema (
	version INTEGER NOT NULL
);
INSERT INTO "curation_schema" VALUES(1);
CREATE TABLE epochs (
	session INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	first_step BIGINT NOT NULL, 
	rows BIGINT NOT NULL, 
	reweighted BIGINT NOT NULL, 
	missing BLOB NOT NULL, 
	PRIMARY KEY (session, number), 
	FOREIGN KEY(session) REFERENCES sessions ("key") ON DELETE CASCADE
);
CREATE TABLE reports (
	session INTEGER NOT NULL, 
	step BIGINT NOT NULL, 
	rank INTEGER NOT NULL, 
	losses BLOB NOT NULL, 
	PRIMARY KEY (session, step, rank), 
	FOREIGN KEY(session) REFERENCES sessions ("key") ON DELETE CASCADE
);
CREATE TABLE sessions (
	"key" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(32), 
	generation INTEGER NOT NULL, 
	spec TEXT NOT NULL, 
	size BIGINT NOT NULL, 
	base INTEGER NOT NULL, 
	created FLOAT NOT NULL, 
	UNIQUE (id)
);
INSERT INTO "sessions" VALUES(1,'old',NULL,0,'{"method":"infobatch","size":100,"dataset":null,"batch_size":8,"epochs":3,"world_size":2,"seed":0,"drop_last":false,"on_missing":"wait","non_finite":"reject","parameters":{}}',100,0,1.79528683781102943416e+09);
CREATE TABLE tokens (
	id VARCHAR(32) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	hash BLOB NOT NULL, 
	scopes VARCHAR(200) NOT NULL, 
	created FLOAT NOT NULL, 
	revoked FLOAT, 
	PRIMARY KEY (id)
);
INSERT INTO "tokens" VALUES('631c1816e89c47aa','old',X'8C28B09A78BC7DAF04C3968B06424B3687E9B2166603894B51603D30BD6B2AE8','select',1.79528683780800795552e+09,NULL);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('sessions',1);
COMMIT;