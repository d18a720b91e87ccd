// An OPC UA server of another stack: node opcua_server.js PORT PKI_FOLDER [EXTRA_NODES] [MAX_PER_CALL] [MORE, JSON]
// Prints "ready" when it listens. Lines on stdin: "set NAME VALUE", "add NAME VALUE" and "bad NAME" change a variable, "count PERIOD_MS" has
// every extra node count down from -1 by one each period, "halt" ends that and prints how many changes were made.
const behindMs = JSON.parse(process.argv[6] || "{}").clockBehindMs;
if (behindMs) {
  const Right = Date;
  globalThis.Date = class extends Right {
    constructor(...of) { super(...(of.length ? of : [Right.now() - behindMs])); }
    static now() { return Right.now() - behindMs; }
  };
}
const opcua = require("node-opcua");
const readline = require("readline");

async function main() {
  const [port, pki, extra, perCall] = [Number(process.argv[2]), process.argv[3],
    Number(process.argv[4] || 0), Number(process.argv[5] || 0)];
  const more = JSON.parse(process.argv[6] || "{}");
  const certificates = new opcua.OPCUACertificateManager({ rootFolder: pki, automaticallyAcceptUnknownCertificate: true });
  await certificates.initialize();
  const users = new opcua.OPCUACertificateManager({ rootFolder: `${pki}/users`, automaticallyAcceptUnknownCertificate: false });
  await users.initialize();
  if (more.userCertificate) await users.trustCertificate(require("node-opcua-crypto").readCertificate(more.userCertificate));
  const server = new opcua.OPCUAServer({
    port,
    resourcePath: "/ecmc/line1",
    serverCertificateManager: certificates,
    userCertificateManager: users,
    ...(more.certificateFile ? { certificateFile: more.certificateFile, privateKeyFile: more.privateKeyFile } : {}),
    ...(more.tokenLifetimeMs ? { defaultSecureTokenLifetime: more.tokenLifetimeMs } : {}),
    userManager: { isValidUser: (user, password) => user === "reader" && password === "right" },
    serverInfo: { applicationUri: "urn:line1:server" },
    serverCapabilities: {
      ...(perCall ? { operationLimits: { maxNodesPerRead: perCall, maxMonitoredItemsPerCall: perCall, maxNodesPerBrowse: perCall } } : {}),
      maxMonitoredItems: 200000, maxMonitoredItemsPerSubscription: 100000, ...more.capabilities,
    },
  });
  await server.initialize();
  const space = server.engine.addressSpace;
  space.registerNamespace("urn:unrelated");
  const plant = space.registerNamespace("urn:plant:line1");
  const folder = plant.addFolder("ObjectsFolder", { browseName: "Line1" });
  const variables = {};
  const add = (name, dataType, value, arrayType, minimumSamplingInterval = 50) => {
    variables[name] = plant.addVariable({
      componentOf: folder, browseName: name, nodeId: `s=${name}`, dataType, minimumSamplingInterval,
      ...(arrayType ? { valueRank: 1, arrayDimensions: [value.length] } : {}),
    });
    variables[name].setValueFromSource({ dataType, value, ...(arrayType ? { arrayType } : {}) });
  };
  add("Power", opcua.DataType.Float, 12.5);
  add("Energy", opcua.DataType.Double, 1000.25);
  add("Volume", opcua.DataType.Int32, -7, null, 0);
  add("Voltage", opcua.DataType.Float, Float32Array.from([230, 231, 229]), opcua.VariantArrayType.Array);
  for (let i = 0; i < extra; i++) add(`N${i}`, opcua.DataType.Double, i, null, more.reportsEveryChange ? 0 : 50);
  let counting, changes = 0;
  const count = (periodMs) => {  // a twentieth of them at a time
    const began = performance.now();
    counting = setInterval(() => {
      const due = Math.floor((performance.now() - began) / periodMs * extra);
      for (; changes < due; changes++) {
        variables[`N${changes % extra}`].setValueFromSource({ dataType: opcua.DataType.Double, value: -1 - Math.floor(changes / extra) });
      }
    }, periodMs / 20);
  };
  add("Stored", opcua.DataType.Int32, -7, null, 0);
  for (const name of more.history || []) space.installHistoricalDataNode(variables[name], { maxOnlineValues: 5000 });
  plant.addAnalogDataItem({
    componentOf: folder, browseName: "Flow", nodeId: "s=Flow", dataType: "Double", value: { dataType: "Double", value: 4.5 },
    engineeringUnitsRange: { low: 0, high: 80 }, engineeringUnits: opcua.standardUnits.cubic_metre_per_hour,
  });
  plant.addVariable({ componentOf: folder, browseName: "Recipe", nodeId: "s=Recipe", dataType: "String", value: { dataType: "String", value: "A-7" } });
  folder.addReference({ referenceType: "Organizes", nodeId: space.rootFolder.objects.nodeId });  // a way back up
  await server.start();
  readline.createInterface({ input: process.stdin }).on("line", (line) => {
    const [verb, name, value] = line.split(" ");
    if (verb === "set") {
      const variable = variables[name];
      variable.setValueFromSource({ dataType: variable.readValue().value.dataType, value: Number(value) });
    } else if (verb === "bad") {
      const variable = variables[name];
      variable.setValueFromSource({ dataType: opcua.DataType.Double, value: 0 }, opcua.StatusCodes.BadSensorFailure);
    } else if (verb === "add") {
      add(name, opcua.DataType.Double, Number(value));
    } else if (verb === "count") {
      count(Number(name));
    } else if (verb === "halt") {
      clearInterval(counting);
      console.log(changes);
    }
  }).on("close", () => process.exit(0));
  console.log("ready");
}
main().catch((why) => { console.error(why); process.exit(1); });
