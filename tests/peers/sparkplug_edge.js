// An edge node of the npm Sparkplug client with one device: births by itself and when asked, the rest by lines on stdin.
//   node sparkplug_edge.js <port> <group> <node> <device>
// A line is {"metrics": […]} for the device's data, {"skip": n} to lose n sequence numbers, {"die": true} for its death.
"use strict";
const readline = require("readline");
const sparkplug = require("sparkplug-client");

const [port, groupId, edgeNode, device] = process.argv.slice(2);
const edge = sparkplug.newClient({
  serverUrl: `mqtt://127.0.0.1:${port}`,
  username: "",
  password: "",
  clientId: `edge-${edgeNode}`,
  groupId,
  edgeNode,
  publishDeath: true,
});

function births() {
  const timestamp = Date.now();
  edge.publishNodeBirth({
    timestamp,
    metrics: [
      { name: "Node Control/Rebirth", type: "Boolean", value: false },
      { name: "Temperature", alias: 1, type: "Int16", value: -12 },
    ],
  });
  edge.publishDeviceBirth(device, {
    timestamp,
    metrics: [
      { name: "Energy/Active Power", alias: 11, type: "Float", value: 12.5 },
      { name: "Energy/Import", alias: 12, type: "Double", value: 25723.4 },
      { name: "Offset", alias: 13, type: "Int32", value: -5 },
      { name: "Pulses", alias: 14, type: "UInt64", value: 4294967296 },
      { name: "Running", alias: 15, type: "Boolean", value: true },
    ],
  });
}

edge.on("birth", () => {
  births();
  console.log("born");
});
edge.on("ncmd", (payload) => {
  const asked = (payload.metrics || []).some((m) => m.name === "Node Control/Rebirth" && m.value === true);
  if (asked) births();
  console.log(asked ? "rebirth" : "command");
});
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const said = JSON.parse(line);
  if (said.skip) for (let k = 0; k < said.skip; k += 1) edge.addSeqNumber({});
  else if (said.die) edge.publishDeviceDeath(device, { timestamp: Date.now() });
  else edge.publishDeviceData(device, { timestamp: Date.now(), metrics: said.metrics });
}).on("close", () => edge.stop());
